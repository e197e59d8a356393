"""Checks that several processes run together over gloo on the CPU.

A check is a module-level function of (rank, size). The processes are forked from one that has imported torch
and transformers already: starting four takes a second, not twenty.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

Check = Callable[[int, int], None]


class Killed(BaseException):
    """Raised by a check: this process is killed, and the check has gone well here."""


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed.fsdp", "transformers", "models", "ligo_fast"])


def spawn(
    size: int, checks: Sequence[Check], timeout: float = 120.0, settings: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Run checks one after the other in `size` processes: name -> what went wrong, empty for nothing.

    `settings` are environment variables. After a check that fails on a rank the rest is not run: the ranks no
    longer agree where they are.
    """
    answers = CONTEXT.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, os.path.join(folder, "store"), checks, answers, dict(settings or {}))
        processes = [CONTEXT.Process(target=_work, args=(r, *arguments), daemon=True) for r in range(size)]
        for p in processes:
            p.start()
        failures: dict[str, list[str]] = {c.__name__: ["not run"] for c in checks}
        try:
            for _ in range(size):
                for name, problem in answers.get(timeout=timeout).items():
                    failures[name] = [f for f in failures[name] if f != "not run"] + [problem]
        except queue.Empty:
            pass  # a process is stuck or died: its checks stay as they are
        finally:
            for p in processes:
                p.join(0.5)
                p.kill()
    return {n: "\n".join(f for f in fs if f) for n, fs in failures.items()}


def _work(
    rank: int,
    size: int,
    store: str,
    checks: Sequence[Check],
    answers: multiprocessing.Queue,
    settings: dict[str, str],
) -> None:
    os.environ.update({"LIGO_FAST_TIMEOUT": "20", **settings})
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=30)
    )
    done: dict[str, str] = {}
    for check in checks:
        try:
            torch.manual_seed(0)
            start = time.perf_counter()
            check(rank, size)
            if rank == 0 and os.environ.get("VERBOSE"):
                print(f"{check.__name__}: {time.perf_counter() - start:.1f} s", flush=True)
            done[check.__name__] = ""
        except Killed:
            done[check.__name__] = ""
            answers.put(done)
            answers.close()
            answers.join_thread()
            os.kill(os.getpid(), signal.SIGKILL)
        except BaseException:
            done[check.__name__] = f"rank {rank}: {traceback.format_exc()}"
            break
    answers.put(done)
    answers.close()
    answers.join_thread()
    os._exit(0)  # another rank may be gone: do not wait for it
