"""Growing on the CPU: against the published sequence, against copies, against everyone, against size."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.report.markdown import NOT_MEASURED, found, measured_on, quartiles, read, table
from ligo_fast.bench.cases import group
from ligo_fast.bench.measure import OURS


def cpu() -> str:
    """Ratios against the published operation sequence, from `make bench`."""
    run = read("cpu")
    ratios, memory = run["ratios"], run["extra_memory"]

    def ratio(name: str) -> str:
        return quartiles(ratios[name])

    def share(side: str, kind: str) -> str:
        return ", ".join(f"{memory[f'{side}, {way}']:{kind}}" for way in ("forward", "backward"))

    def rates(kind: str) -> str:
        return ", ".join(
            ratio(f"{call}: {kind} FLOPs at matmul rate / time") for call in ("apply_", "pullback")
        )

    rows = [
        ["`apply_` / published sequence", ratio("apply_ / as published"), "at most 0.33"],
        ["pull-back / its backward", ratio("pullback / as published"), "at most 0.33"],
        ["`apply_` / published, maps shared as ours", ratio("apply_ / published forward"), ""],
        ["pull-back / its backward, maps shared as ours", ratio("pullback / published backward"), ""],
        ["`apply_`, pull-back: rate on the design's FLOPs / matmul rate", rates("design"), "at least 0.80"],
        ["the same on the FLOPs that were done", rates("own"), ""],
        ["extra memory / large model: `apply_`, pull-back", share("ours", ".1%"), "under 10%"],
        ["the same, published: forward, backward", share("published", ".0%"), ""],
    ]
    for tokens, part in run["learning"].items():
        rows.append(
            [
                f"`GrowthOptimizer.step()` / plain step, {tokens}",
                quartiles(part["step / plain"], "{:.2%}"),
                "",
            ]
        )
    return f"{table(['', 'measured: median (quartiles)', 'goal'], rows)}\n\n{measured_on(run)}"


def select() -> str:
    """Training-free growth against copies on the CPU, from `python -m benchmarks.select`."""
    run = read("select")

    rows = [
        [
            f"`{row['method']}`, {row['small']} to {row['large']}",
            f"{row['bytes'] / 1e6:.0f} MB",
            f"{row['gb_per_second']:.1f}",
            *(quartiles(row[key]) for key in ("of memcpy", "over index", "over foreach")),
        ]
        for row in run["rows"].values()
    ]
    header = [
        "",
        "read and written",
        "GB/s",
        "rate / memcpy's, goal 0.90",
        "index_select and copy / ours, goal 3",
        "`_foreach_copy_` / ours",
    ]
    text = (
        "Training-free growth moves bytes and computes next to nothing. A Llama-style model in float32, "
        "(layers, hidden) to (layers, hidden), against copies and against torch; ratios with their quartiles."
    )
    load = run["hardware"]["load_average_at_start"]
    text += f" Load average at the start: {load:.1f}; above 1 other work takes its share of the memory."
    return f"{text}\n\n{table(header, rows)}\n\n{measured_on(run)}"


PEER_HEADER = [
    "",
    "by",
    "ms (quartiles)",
    "GB/s",
    "TFLOP/s",
    "of the floor",
    "ours is faster",
    "error / plain torch's",
    "extra memory",
]
PEER_TITLES = {
    "bert: apply": "BERT (6, 512) to (12, 768), `ligo`: `apply_`",
    "bert: pullback": "the same: pull-back",
    "stack: apply": "Llama-style (6, 768) to (12, 768), `stack`",
    "net2net: apply": "Llama-style (6, 512) to (12, 768), `net2net+stack`",
    "blend: op": "6 layers (2048, 512) mixed to 12",
    "expand: op": "6 layers (2048, 512) to (3072, 768) by [I; C]",
    "expand-attention: op": "6 layers (512, 512) to (768, 768) by [I; C]",
    "select: op": "6 layers (2048, 512) to 12 of (3072, 768), selected",
}


def peers() -> str:
    """Ours and everyone else on the same work, from `python -m benchmarks.peers`."""
    run = found("peers")
    if run is None:
        rows = [[title, NOT_MEASURED, *[""] * (len(PEER_HEADER) - 2)] for title in PEER_TITLES.values()]
        return table(PEER_HEADER, rows)
    not_tiny(run, "peers")
    rows = []
    for key, title in PEER_TITLES.items():
        row = run["rows"].get(key)
        if row is None:
            rows.append([title, NOT_MEASURED, *[""] * (len(PEER_HEADER) - 2)])
            continue
        for name in sorted(row["variants"], key=lambda n: n != OURS):
            rows.append([title if name == OURS else "", name, *peer_cells(row, name)])
    return f"{table(PEER_HEADER, rows)}\n\n{measured_on(run)}"


def error_cell(gate: dict[str, dict[str, float]]) -> str:
    """The largest quotient over the kinds of tensors; errors of float64 itself are none."""
    rounded = [check["ours"] / check["plain"] for check in gate.values() if check["plain"] > 1e-12]
    return f"{max(rounded):.1f}" if rounded else "exact"


def peer_cells(row: dict[str, Any], name: str) -> list[str]:
    """What was measured of a peer, or why nothing was."""
    part = row["variants"][name]
    if part["seconds"] is None:
        return [f"{NOT_MEASURED}: {part['reason']}".replace("|", "/"), *[""] * (len(PEER_HEADER) - 3)]
    faster, extra = row["speed-up"].get(name), part["extra_bytes"]
    return [
        quartiles(part["seconds"], "{:.3g}", 1e3),
        f"{part['gb_per_second']:.1f}",
        f"{part['tflops']:.3f}" if row["fewest flops"] else "",
        f"{part['floor / time']['median']:.0%}",
        f"{faster['median']:.2f}x" if faster else "",
        error_cell(part["gate"]),
        mebibytes(extra),
    ]


def mebibytes(size: float | None) -> str:
    """Nothing where nothing tells; a peak a little below what was there before is none."""
    return "" if size is None else f"{max(size, 0) / 2**20:.0f} MiB"


SCALING_HEADER = [
    "",
    "parameters",
    "method",
    "bytes",
    "s (quartiles)",
    "GB/s",
    "TFLOP/s",
    "of the floor",
    "extra",
]


def scaling() -> str:
    """Time against size, from `python -m benchmarks.scaling`; every size is there, measured or not."""
    run = found("scaling")
    if run is not None:
        not_tiny(run, "scaling")
    rows = []
    for name, case in group("scaling").items():
        small, large = case.pair.parameters()
        first = [case.title, f"{small / 1e6:,.0f}M to {large / 1e6:,.0f}M", f"`{case.method}`"]
        first.append(f"{case.nbytes / 1e9:.2f} GB, {str(case.dtype).removeprefix('torch.')}")
        part = None if run is None else run["rows"].get(name)
        reason = "" if part is None or "reason" not in part else f": {part['reason']}"
        cells = [f"{NOT_MEASURED}{reason}", *[""] * 4]
        if part is not None and not reason:
            ours = part["variants"][OURS]
            cells = [
                quartiles(ours["seconds"], "{:.3g}"),
                f"{ours['gb_per_second']:.1f}",
                f"{ours['tflops']:.3f}" if part["fewest flops"] else "",
                f"{ours['floor / time']['median']:.0%}",
                mebibytes(ours["extra_bytes"]),
            ]
        rows.append([*first, *cells])
    if run is None:
        return table(SCALING_HEADER, rows)
    return f"![time against bytes](images/scaling.png)\n\n{table(SCALING_HEADER, rows)}\n\n{measured_on(run)}"


def not_tiny(run: dict[str, Any], name: str) -> None:
    """Exits for a run that only tried the benchmark."""
    if run["quick"]:
        sys.exit(f"{name}.json is of tiny sizes: nothing in it was measured")
