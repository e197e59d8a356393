"""Growing a sharded model on several processes against one process: `python -m benchmarks.sharded`.

Each process has one thread. A round grows the model sharded with fully_shard on all of them, the slowest
counts, and then the whole model on the first alone while the others wait. The README beside this file
explains the rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import ligo_fast as lf
from benchmarks.measure import hardware, provenance, ratio, summarize, versions
from benchmarks.models import build, facts, parameter_bytes
from ligo_fast.bench.cases import CASES, Case

RESULTS = Path(__file__).parent / "results" / "sharded.json"
LEARNED, FIXED = "ligo", "net2net+stack"


def timed(run: Callable[[], object] | None, clock: Callable[[], float]) -> float:
    """Seconds of the slowest process; None is a process that waits."""
    dist.barrier()
    start = clock()
    if run is not None:
        run()
    seconds = torch.tensor(clock() - start if run is not None else 0.0, dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return float(seconds)


def shard(model: torch.nn.Module) -> torch.nn.Module:
    """fully_shard of every layer and of the rest."""
    for layer in next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList)):
        fully_shard(layer)
    return fully_shard(model)


def operators(case: Case, method: str, alone: bool) -> dict[str, lf.GrowthOperator]:
    """The same growth of a sharded and, on the process that will run it, of a whole model."""
    made = {}
    for name in ("sharded", "one") if alone else ("sharded",):
        small, large = build(case)
        made[name] = lf.GrowthOperator(small, shard(large) if name == "sharded" else large, method=method)
        if method == LEARNED:
            for p in large.parameters():
                p.grad = torch.full_like(p, 1e-3)
    return made


def shares(op: lf.GrowthOperator) -> dict[str, float]:
    """This process's part of the FLOPs and of the bytes of the large model."""
    mine = sum(part.piece.flops(False) for part in op._execution.bound.parts if part.piece is not None)
    held = sum(p.to_local().nbytes for p in op.large.parameters())
    return {"FLOPs": mine / max(op.flops(), 1), "bytes": held / parameter_bytes(op.large)}


def work(rank: int, size: int, store: str, options: argparse.Namespace, report: dict[str, Any]) -> None:
    """What one process does; the first writes the report."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    case = CASES["tiny-bert" if options.quick else "bert"]
    clock = process_time if options.busy else perf_counter
    report |= {"hardware": hardware(), "versions": versions(), "pair": facts(case), "clock": clock.__name__}
    report |= {"processes": size, "rounds": options.rounds, "seconds": {}, "ratios": {}, "shares": {}}
    for method in (LEARNED, FIXED):
        ops = operators(case, method, rank == 0)
        every: list[Any] = [None] * size
        dist.all_gather_object(every, shares(ops["sharded"]))
        report["shares"][method] = every
        steps = ["apply_", "pullback"] if method == LEARNED else ["apply_"]
        names = ("sharded", "one")
        times: dict[str, list[float]] = {f"{name}, {step}": [] for step in steps for name in names}
        for turn in range(options.rounds + 2):
            for step in steps:
                for name in names:
                    op = ops.get(name)
                    seconds = timed(None if op is None else getattr(op, step), clock)
                    if turn > 1:
                        times[f"{name}, {step}"].append(seconds)
        for step in steps:
            quotient = ratio(times[f"sharded, {step}"], times[f"one, {step}"])
            report["ratios"][f"{method}: {step}, {size} processes / one"] = quotient
        report["seconds"] |= {f"{method}: {name}": summarize(values) for name, values in times.items()}
        if method == LEARNED:
            volume = lf.traffic(ops["sharded"])
            report["bytes_per_step"] = {
                "factors": volume.factors, "model": volume.model, "ratio": volume.ratio,
            }  # fmt: skip
    if rank == 0:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        for name, row in report["ratios"].items():
            print(f"{name:<48}{row['median']:.3f} [{row['q1']:.3f}, {row['q3']:.3f}]  best {row['best']:.3f}")
        print(report["shares"], report["bytes_per_step"], f"written to {options.out}", sep="\n")
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharded", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the benchmark itself")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--busy", action="store_true", help="count CPU time: for a busy machine")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args(arguments)
    report = provenance(sys.argv[1:] if arguments is None else arguments, "benchmarks.sharded")
    with tempfile.TemporaryDirectory() as folder:
        args = (options.processes, f"{folder}/store", options, report)
        torch.multiprocessing.spawn(work, args, nprocs=options.processes)


if __name__ == "__main__":
    main()
