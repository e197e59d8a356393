"""Growing and learning on the CPU against the published sequence: `python -m benchmarks.cpu`.

Everything is timed in turn within one run, so that a ratio does not depend on the machine's other work.
The README beside this file explains the rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

import ligo_fast as lf
from benchmarks import memory
from benchmarks.growth import Growth
from benchmarks.learning import accumulated_times, overhead, step_times
from benchmarks.measure import Clock, Summary, hardware, provenance, summarize, versions
from benchmarks.models import facts, parameter_bytes
from ligo_fast.bench.cases import CASES

RESULTS = Path(__file__).parent / "results" / "cpu.json"


def options_from(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the benchmark itself")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of growing")
    parser.add_argument("--learning-rounds", type=int, default=6, help="rounds of learning; 0 leaves it out")
    parser.add_argument("--busy", action="store_true", help="one thread and its CPU time: for a busy machine")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    return parser.parse_args(arguments)


def show(title: str, rows: Mapping[str, Summary | float]) -> None:
    """Print one line a row: median, quartiles and best, or one number."""
    print(f"\n{title}")
    for name, row in rows.items():
        if isinstance(row, dict):
            spread = f"[{row['q1']:.4f}, {row['q3']:.4f}]"
            print(f"  {name:<48}{row['median']:>10.4f}   {spread}   best {row['best']:.4f}")
        else:
            print(f"  {name:<48}{row:>10.4f}")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Memory, gate, growing, learning; each is printed when done, and all goes to the JSON."""
    options = options_from(arguments)
    case = CASES["tiny-bert"] if options.quick else replace(CASES["bert"], batch=(32, 128))
    clock: Clock = perf_counter
    if options.busy:
        torch.set_num_threads(1)
        clock = process_time
    report: dict[str, Any] = provenance(sys.argv[1:] if arguments is None else arguments)
    report |= {"hardware": hardware(), "versions": versions(), "pair": facts(case)}
    report["rounds"] = {"growing": options.rounds, "learning": options.learning_rounds}
    report["clock"] = clock.__name__
    extra = memory.extra_bytes(options.quick)

    growth = Growth(case, options.quick)
    report["gate"] = growth.check()
    if not all(check["green"] for check in report["gate"].values()):
        sys.exit(f"the gate is red, nothing is reported: {report['gate']}")
    for kind, check in report["gate"].items():
        print(f"gate green: {kind}: error {check['ours']:.2e}, plain torch {check['plain']:.2e}")

    large_bytes = parameter_bytes(growth.large)
    report["extra_memory"] = {
        f"{name}, {part}": size / large_bytes for name, parts in extra.items() for part, size in parts.items()
    }
    show("extra memory / large model", report["extra_memory"])

    times, report["ratios"], report["rates"] = growth.measure(options.rounds, clock)
    report["seconds"] = {name: summarize(values) for name, values in times.items()}
    show("rates", report["rates"])
    show("seconds", report["seconds"])
    show("ratios", report["ratios"])

    optimizer = lf.GrowthOptimizer(growth.op, torch.optim.AdamW, lr=1e-3)
    report["learning"] = {}
    assert case.batch is not None
    if options.learning_rounds:
        rounds = options.learning_rounds
        for passes, measured in (
            (1, lambda: step_times(growth.large, optimizer, case, rounds, clock)),
            (8, lambda: accumulated_times(growth.large, optimizer, case, 8, clock)),
        ):
            title = f"{passes * prod(case.batch)} tokens a step"
            report["learning"][title] = overhead(measured())
            show(f"learning, {title}", report["learning"][title])

    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
