"""Whatever moment a run is killed at, the place has nothing, the old folder or the new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import models
import pytest

import ligo_fast as lf
from ligo_fast.checkpoint import grow_checkpoint, swap

# Forks children that grow again and again, now one model and now the other, kills each at a random moment
# with SIGKILL and looks at what is there. One process, so that each child starts at once.
KILLER = """
import hashlib, json, os, pathlib, random, shutil, signal, sys, time
import torch
torch.set_num_threads(1)
from ligo_fast.checkpoint import grow_checkpoint, swap

work, times, way = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if way == "rename":
    swap.exchange = lambda a, b: False
out, smalls = work / "out", [work / "a", work / "b"]

def state():
    if not out.exists():
        return "absent"
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}

def grow(which):
    grow_checkpoint(smalls[which], out, depth=6, method="net2net+stack", width=32, overwrite=True)

def fork(which):
    child = os.fork()
    if child == 0:
        try:
            grow(which)
        finally:
            os._exit(0)
    return child

complete = []
for which in (0, 1):
    grow(which)
    start = time.perf_counter()
    os.waitpid(fork(which), 0)
    seconds = time.perf_counter() - start
    complete.append(state())
assert complete[0] != complete[1]
random.seed(0)
seen = {"absent": 0, "old": 0, "new": 0}
for turn in range(times):
    if turn % 4 == 0:
        shutil.rmtree(out, ignore_errors=True)
    before = state()
    which = 0 if before == complete[1] else 1
    child = fork(which)
    time.sleep(random.uniform(0, 1.3 * seconds))  # `seconds` follows the machine's load
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    after = state()
    kinds = {"absent": after == "absent", "old": after == before, "new": after == complete[which]}
    allowed = ["new", "old"] + (["absent"] if way == "rename" or before == "absent" else [])
    found = [k for k in allowed if kinds[k]]
    assert found, (turn, before, after)
    seen[found[0]] += 1
    seconds *= 0.95 if found[0] == "new" else 1.05
    if way == "rename" and before != "absent":  # the next run puts the old one back before all else
        swap.clean_up(out)
        assert state() in (before, complete[which]), turn
shutil.rmtree(out, ignore_errors=True)
grow(0)
assert state() == complete[0]
print(json.dumps([seen, sorted(p.name for p in work.iterdir())]))
"""


@pytest.mark.parametrize(("way", "times"), [("exchange", 100), ("rename", 40)])
def test_killed_at_random_moments(way, times, tmp_path):
    memory = Path("/dev/shm")  # where fsync does not make the test wait; what a kill leaves is the same
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as work:
        for seed, name in enumerate("ab"):
            models.build("llama-lm", seed=seed).save_pretrained(Path(work) / name, max_shard_size="4KB")
        command = [sys.executable, "-c", KILLER, work, str(times), way]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seen, names = json.loads(done.stdout)
    assert names == ["a", "b", "out"]  # what killed runs left is gone
    assert sum(seen.values()) == times
    assert seen["old"] > 5 and seen["new"] > 5, seen  # moments before and after the last step were hit


@pytest.fixture
def small(tmp_path: Path) -> Path:
    models.build("gpt2-lm").save_pretrained(tmp_path / "small")
    return tmp_path / "small"


class Stop(Exception):
    """Raised in place of a system call."""


CALLS = ("posix_fallocate", "fsync", "fdatasync", "rename", "open", "pwrite", "copy_file_range")


@pytest.mark.parametrize("error", [Stop, OSError(28, "No space left on device")])
@pytest.mark.parametrize("call", CALLS)
def test_a_failing_system_call_leaves_nothing(call, error, small, tmp_path, monkeypatch):
    """Every call of its kind in turn, until a run gets through."""
    real, counted = getattr(os, call), [0, 0]

    def fails(*args, **kwargs):
        counted[0] += 1
        if counted[0] == counted[1]:
            raise error
        return real(*args, **kwargs)

    expected = Stop if error is Stop else (lf.GrowthError, OSError)
    monkeypatch.setattr(os, call, fails)
    for number in range(1, 60):
        counted[:] = [0, number]
        try:
            grow_checkpoint(small, tmp_path / "out", depth=4)
        except expected:
            assert sorted(p.name for p in tmp_path.iterdir()) in (["small"], ["out", "small"])
            if (tmp_path / "out").exists():  # the last fsync, of the parent folder, came after the rename
                assert (tmp_path / "out" / "model.safetensors").exists()
                break
        else:
            break
    else:
        raise AssertionError(f"{call} never stopped failing")


def test_a_run_that_lives_is_not_cleaned_up(tmp_path):
    out = tmp_path / "out"
    with swap.replaced(out, False) as first:
        (first / "a").write_text("1")
        with swap.replaced(out, False) as second:
            (second / "b").write_text("2")
            assert first.exists()
        assert [p.name for p in out.iterdir()] == ["b"]
        with pytest.raises(lf.GrowthError), swap.replaced(out, False):
            pass
        (out / "b").unlink()
    assert [p.name for p in out.iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_runs_to_one_place_give_one_of_them(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(lf.GrowthError, match="not empty"), swap.replaced(out, False) as late:
        (late / "late").write_text("")
        with swap.replaced(out, False) as early:
            (early / "early").write_text("")
    assert [p.name for p in out.iterdir()] == ["early"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_folder_stays_a_link(small, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    grow_checkpoint(small, tmp_path / "out", depth=4)
    assert (tmp_path / "out").is_symlink() and (tmp_path / "real" / "growth.json").exists()


def test_the_folder_has_usual_permissions(small, tmp_path):
    grow_checkpoint(small, tmp_path / "out", depth=4)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
