"""Training-free growth of whole models on a GPU: `python -m benchmarks.gpu_select --out FILE`.

The rows of `benchmarks.select`, from 0.3 to 0.7 GB: `apply_` against a copy of as many bytes,
`_foreach_copy_` of the grown weights and index_select for each tensor. Once all rows have these,
torch.compile of the latter, which takes far longer to compile than to time. What was measured is written
after each row. Nothing is reported of a row whose weights are not, bit for bit, what torch computes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_timing import facts, graph_replays
from benchmarks.measure import ratio, summarize
from benchmarks.models import parameter_bytes
from benchmarks.select import by_index
from ligo_fast.bench.cases import group
from ligo_fast.bench.measure import one_line
from ligo_fast.bench.timing import Stopwatch, Variant, backend
from ligo_fast.compute.backend_select import why_not_select


def measure(name: str, device: torch.device, rehearsal: bool) -> dict[str, Any]:
    """One row without torch.compile, or why there is none."""
    if why := why_not_select(device):
        return {"status": "skipped", "reason": why}
    case = group("tiny select")[f"tiny-{name}"] if rehearsal else group("select")[name]
    op = case.operator(device)
    small, large = op.small, op.apply_()
    plan = op._execution.compiled.selection
    if plan is None or plan.rejected:
        return {"status": "failed", "reason": str(plan and plan.rejected)}
    outs = [p.detach() for p in large.parameters()]
    ours = [t.clone() for t in outs]
    peer = by_index(plan.table.items)
    for t in outs:
        t.fill_(torch.nan)
    peer()
    if not all(torch.equal(a, b) for a, b in zip(ours, outs, strict=True)):
        return {"status": "red gate", "reason": "the weights are not what torch computes"}
    size = parameter_bytes(small) + parameter_bytes(large)
    buffer = torch.ones(2, size // 8, device=device)  # float32; half of the bytes are read, half are written
    variants = {
        "ours": Variant(op.apply_),
        "copy": Variant(lambda: buffer[1].copy_(buffer[0])),
        "foreach": Variant(lambda: torch._foreach_copy_(outs, ours)),
        "index": Variant(peer),
    }
    watch = Stopwatch(device, cold=not rehearsal)
    times = watch.seconds(variants, 1 if rehearsal else watch.rounds(variants, 4.0, 30))

    def reset() -> None:
        for t in outs:
            t.fill_(torch.nan)

    return {
        "status": "measured",
        "bytes": size,
        "seconds": {n: summarize(t) for n, t in times.items()},
        "gb_per_second": size / summarize(times["ours"])["median"] / 1e9,
        "of copy": ratio(times["copy"], times["ours"]),
        "speed-up": {n: ratio(t, times["ours"]) for n, t in times.items() if n not in ("ours", "copy")},
        "compiled": "not in a rehearsal" if rehearsal else "not begun",
        "facts": facts(watch, variants["ours"]),
        "graph": graph_replays(op.apply_, reset, outs) if device.type == "cuda" else None,
    }


def add_compiled(name: str, row: dict[str, Any], device: torch.device) -> None:
    """torch.compile's index_select and ours in turn; or why not."""
    op = group("select")[name].operator(device)
    op.apply_()
    plan = op._execution.compiled.selection
    assert plan is not None  # as it was when the row was measured
    try:
        compiled = Variant(torch.compile(by_index(plan.table.items)))
        compiled()
        variants = {"ours": Variant(op.apply_), "compiled": compiled}
        watch = Stopwatch(device)
        times = watch.seconds(variants, watch.rounds(variants, 2.0, 30))
    except Exception as error:  # a compiler raises anything
        row["compiled"] = one_line(error)
        return
    row["compiled"] = "measured"
    row["seconds"]["compiled"] = summarize(times["compiled"])
    row["speed-up"]["compiled"] = ratio(times["compiled"], times["ours"])


def main() -> None:
    """Measure every row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_select", description=__doc__)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device("cpu" if options.rehearse else "cuda")
    rows: dict[str, dict[str, Any]] = {}
    for name in group("select"):
        with backend("auto"):
            try:
                rows[name] = measure(name, device, options.rehearse)
            except Exception as error:  # what it says is in the JSON, and the next row runs
                rows[name] = {"status": "failed", "reason": one_line(error)}
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{name}: {rows[name]['status']} {rows[name].get('reason', '')}", flush=True)
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    if any(row["status"] in ("failed", "red gate") for row in rows.values()):
        raise SystemExit(json.dumps(rows)[-2000:])
    for name, row in rows.items():
        if row["status"] == "measured" and not options.rehearse:
            with backend("auto"):
                add_compiled(name, row, device)
            torch.cuda.empty_cache()
            print(f"{name}, compiled: {row['compiled']}", flush=True)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
