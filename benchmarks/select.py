"""Training-free growth of a whole model on the CPU against copies: `python -m benchmarks.select`.

A Llama-style model in float32, 0.3 to 0.7 GB with the small one. Timed in turn in one run: `apply_`; a memcpy
by all threads that reads and writes as many bytes in sum; `torch._foreach_copy_` of the grown weights; for
each tensor index_select, scale and copy in torch. Nothing is reported of a row whose weights are not, bit for
bit, what torch computes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import hardware, interleave, provenance, ratio, summarize, versions
from benchmarks.models import parameter_bytes
from ligo_fast.bench.cases import group
from ligo_fast.bench.timing import memcpy
from ligo_fast.native.select import Item, Take

RESULTS = Path(__file__).parent / "results" / "select.json"
ROWS = group("select")
MEMCPY, FOREACH, INDEX = "memcpy", "_foreach_copy_", "index_select + copy"


def by_index(items: Sequence[Item]) -> Callable[[], None]:
    """For each tensor: index_select of rows and of columns where they are not all, scales, copy."""

    def side(take: Take, dim: int) -> Callable[[Tensor], Tensor]:
        whole = take.index is None and take.size == take.old
        device = items[0].out.device
        every = torch.arange(take.start, take.start + take.size, device=device)
        index = every if take.index is None else take.index.long()
        zero = index < 0
        scale = torch.ones(take.size, device=device) if take.scale is None else take.scale.clone()
        scale[zero] = 0.0
        factor = None if take.scale is None and not zero.any() else scale.unsqueeze(1 - dim)
        index = index.clamp(min=0)

        def select(x: Tensor) -> Tensor:
            x = x if whole else x.index_select(dim, index)
            return x if factor is None else x * factor

        return select

    steps = [(item, side(item.rows, 0), side(item.columns, 1)) for item in items]

    def run() -> None:
        for item, rows, columns in steps:
            x = columns(rows(item.source))
            item.out.copy_(x if item.scale == 1 else x * item.scale)

    return run


def measure(name: str, rounds: int, quick: bool) -> dict[str, Any]:
    """One row: seconds, ratios, or why there are none."""
    op = (group("tiny select")[f"tiny-{name}"] if quick else ROWS[name]).operator()
    small, large = op.small, op.large
    op.apply_()
    plan = op._execution.compiled.selection
    if plan is None or plan.rejected:
        return {"status": "failed", "reason": "off" if plan is None else next(iter(plan.rejected.values()))}
    ours = [p.detach().clone() for p in large.parameters()]
    peer = by_index(plan.table.items)
    for p in large.parameters():
        p.data.fill_(torch.nan)
    peer()
    if not all(torch.equal(a, b) for a, b in zip(ours, large.parameters(), strict=True)):
        return {"status": "red gate", "reason": "the weights are not what torch computes"}
    size = parameter_bytes(small) + parameter_bytes(large)
    buffer = torch.ones(2, size // 8)  # float32; half of the bytes are read, half are written
    outs = [p.detach() for p in large.parameters()]
    times = interleave(
        {
            "apply_": op.apply_,
            MEMCPY: memcpy(buffer[0], buffer[1]),
            "copy_": lambda: buffer[1].copy_(buffer[0]),
            FOREACH: lambda: torch._foreach_copy_(outs, ours),
        },
        rounds,
        warmups=2,
    )
    slow = interleave(
        {"apply_": op.apply_, INDEX: peer}, max(2, rounds // 3), warmups=0
    )  # apart: it takes long
    fast = min((MEMCPY, "copy_"), key=lambda n: summarize(times[n])["median"])
    return {
        "status": "measured",
        "method": ROWS[name].method,
        "small": f"({small.config.num_hidden_layers}, {small.config.hidden_size})",
        "large": f"({large.config.num_hidden_layers}, {large.config.hidden_size})",
        "bytes": size,
        "seconds": {n: summarize(t) for n, t in (times | {INDEX: slow[INDEX]}).items()},
        "gb_per_second": size / summarize(times["apply_"])["median"] / 1e9,
        "of memcpy": ratio(times[fast], times["apply_"]),  # libc's or torch's, whichever is faster
        "over foreach": ratio(times[FOREACH], times["apply_"]),
        "over index": ratio(slow[INDEX], slow["apply_"]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Every row; what was measured goes to the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.select", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the benchmark itself")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = provenance(sys.argv[1:] if arguments is None else arguments, "benchmarks.select")
    report |= {"hardware": hardware(), "versions": versions(), "rounds": options.rounds, "rows": {}}
    for name in options.rows:
        report["rows"][name] = row = measure(name, options.rounds, options.quick)
        if row["status"] != "measured":
            sys.exit(f"{name}: {row['status']}, {row['reason']}; nothing is reported")
        cells = [f"{key} {row[key]['median']:.2f}" for key in ("of memcpy", "over foreach", "over index")]
        print(f"{name:<10}{row['gb_per_second']:6.1f} GB/s  {'  '.join(cells)}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
