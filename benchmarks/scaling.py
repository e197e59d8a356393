"""Time against size, from 10M to 7B parameters on the CPU: `python -m benchmarks.scaling`.

Llama-style models grow to about twice their size by the paper's LiGO and by copying (Net2Net, stacked), each
beside a copy of as many bytes in the same run. A size that does not fit the free memory has the reason in
place of numbers. A second run of the same commit goes on where one was stopped.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import begin, provenance, save
from ligo_fast.bench.cases import CASES, Case, group
from ligo_fast.bench.measure import OURS, Bench, Effort
from ligo_fast.bench.timing import Stopwatch

RESULTS = Path(__file__).parent / "results" / "scaling.json"
BESIDE = 4e9  # bytes beside the weights: the gate's float64 matrices, the flushed cache, what is copied


def measure(case: Case, watch: Stopwatch, effort: Effort) -> dict[str, Any]:
    """One point: `apply_` alone, gated along random vectors."""
    bench = Bench(case.operator(), watch, effort)
    return case.facts() | bench.measure("apply", alone=True)


def free_bytes() -> float:
    """What Linux, or the container, could give a process without swapping; elsewhere no limit is known."""
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    found = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    limit = group / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        found.append(float(most) - int((group / "memory.current").read_text()))
    return min(found, default=float("inf"))


def too_large(case: Case, free: float) -> dict[str, Any] | None:
    """The row of a case that does not fit; None for one that does."""
    if (needed := case.nbytes + BESIDE) <= free:
        return None
    reason = f"takes {needed / 1e9:.1f} GB of memory, there is room for {free / 1e9:.1f}"
    return case.facts() | {"status": "does not fit", "reason": reason}


def main(arguments: Sequence[str] | None = None) -> None:
    """Every case that fits; what was measured goes to the JSON after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--gigabytes", type=float, help="of memory to use; what is free")
    parser.add_argument("--seconds", type=float, default=6.0, help="for the rounds of a point")
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the benchmark itself")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args(arguments)
    told = sys.argv[1:] if arguments is None else arguments
    report = begin(options.out, provenance(told, "benchmarks.scaling") | {"quick": options.quick})
    watch = Stopwatch(torch.device("cpu"), cold=not options.quick)
    effort = Effort(0.0, 2, 2, 64, 1) if options.quick else Effort(options.seconds, 9, 3, 3072)
    cases = group("scaling")
    if options.quick:
        cases = {name: CASES[f"tiny-{name}"] for name in ("bert", "net2net")}
    for name, case in cases.items():
        if report["rows"].get(name, {}).get("status") == "measured":
            continue
        free = free_bytes() if options.gigabytes is None else options.gigabytes * 1e9
        if row := too_large(case, free):
            report["rows"][name] = row
            save(options.out, report)
            print(f"{name:<14}{row['reason']}", flush=True)
            continue
        report["rows"][name] = row = measure(case, watch, effort)
        if row["status"] != "measured":
            sys.exit(f"{name}: {row['status']}, {row['reason']}; nothing is reported")
        save(options.out, report)
        ours = row["variants"][OURS]
        rates = f"{ours['gb_per_second']:7.2f} GB/s {1e3 * ours['tflops']:8.1f} GFLOP/s"
        print(f"{name:<14}{ours['seconds']['median']:9.4f} s {rates}", flush=True)
        gc.collect()
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
