"""The tables of the GPU check, from its JSON; without one every row says "not measured"."""

from __future__ import annotations

from typing import Any

# The rows of a full run: title, precisions, whether there is a learning step; sizes in `gpu_models.ROWS`.
ROWS = {
    "bert": ("BERT (6, 512) to (12, 768)", ("tf32", "bf16"), True),
    "gpt2": ("GPT-2 (12, 768) to (24, 1024)", ("tf32", "bf16"), True),
    "llama": ("Llama-style 1.1B (22, 2048) to 7B (32, 4096)", ("bf16",), False),
}
# Training-free growth: method, and the hidden size of the small model; the large one has 12 layers of 768.
SELECT_ROWS = {
    "stack": ("stack", 768),
    "copy": ("copy+stack", 512),
    "net2net": ("net2net+stack", 512),
    "aki": ("aki+stack", 512),
    "tile": ("tile+stack", 384),
    "pad": ("pad+zero", 512),
}
WEIGHTS = {"tf32": "float32, tf32 products", "bf16": "bfloat16"}
WORK = {"apply": "`apply_`", "pullback": "pull-back"}
GROWTH_HEADER = [
    "", "ms (quartiles)", "GB/s", "TFLOP/s", "of the floor, goal 70%", "over published, goal 10x",
    "over compiled, goal 2x", "over torch backend", "launches", "extra memory", "host", "host waits",
    "CUDA graph",
]  # fmt: skip
STEP_HEADER = ["", "forward + backward", "with `GrowthOptimizer.step()`", "ratio, goal at most 1.03"]
SELECT_HEADER = [
    "", "ms (quartiles)", "GB/s", "rate / copy's, goal 92%", "over `_foreach_copy_`", "over index_select",
    "over compiled", "launches, goal 1", "host", "CUDA graph",
]  # fmt: skip
# Learning with released gradients, by name of the pair in `learning_memory.PAIRS`.
LEARNING = {"7b": "Learning a Llama-style 7B from 1.1B, bfloat16, 20 steps of 4096 tokens, checkpointing"}
LEARNING_HEADER = ["", "peak memory", "on paper", "time per step", "loss, first to last step"]
NOT_MEASURED = "not measured"

Rows = list[list[str]]


def order() -> list[tuple[str, str]]:
    """Rows as the check measures them: the most telling first, in case time runs out."""
    return [("bert", "tf32"), ("gpt2", "tf32"), ("llama", "bf16"), ("bert", "bf16"), ("gpt2", "bf16")]


def milliseconds(seconds: dict[str, float]) -> str:
    middle, low, high = (f"{1e3 * seconds[key]:.3g}" for key in ("median", "q1", "q3"))
    return f"{middle} ({low} to {high})"


def growth_rows(report: dict[str, Any] | None) -> Rows:
    """One row for each pair, precision and direction."""
    rows = []
    for name, precision in order():
        for work, title in WORK.items():
            first = f"{ROWS[name][0]}, {WEIGHTS[precision]}: {title}"
            rows.append([first, *_growth_cells(_part(report, name, precision, work))])
    return rows


def _growth_cells(part: dict[str, Any]) -> list[str]:
    if part.get("status") != "measured":
        return [_why_not(part)] + [""] * (len(GROWTH_HEADER) - 2)
    variants = part["variants"]
    ours = variants["ours"]

    def over(peer: str) -> str:
        return f"{part['speed-up'][peer]['median']:.1f}x" if peer in part["speed-up"] else NOT_MEASURED

    def fact(key: str, kind: str) -> str:
        return kind.format(ours[key]) if key in ours else NOT_MEASURED

    waits = ours.get("host_sync", NOT_MEASURED)
    return [
        milliseconds(ours["seconds"]),
        f"{part['gb_per_second']:.0f}",
        f"{part['tflops']:.1f}",
        f"{part['floor / time']['median']:.0%}",
        over("published"),
        over("compiled"),
        over("torch backend"),
        fact("launches", "{}"),
        f"{ours['extra_bytes'] / 2**20:.0f} MiB" if "extra_bytes" in ours else NOT_MEASURED,
        fact("host_ms", "{:.2f} ms"),
        {True: "yes", False: "no"}.get(waits, str(waits)),
        part["graph"] or NOT_MEASURED,
    ]


def step_rows(report: dict[str, Any] | None) -> Rows:
    """One row for each learning step."""
    rows = []
    for name, precision in order():
        title, _, has_step = ROWS[name]
        if has_step:
            part = _part(report, name, precision, "step")
            tokens = f", {part['tokens']} tokens" if "tokens" in part else ""
            rows.append([f"{title}, {WEIGHTS[precision]}{tokens}", *_step_cells(part)])
    return rows


def _step_cells(part: dict[str, Any]) -> list[str]:
    if part.get("status") != "measured":
        return [_why_not(part), "", ""]
    r = part["learning / plain"]
    ratio = f"{r['median']:.3f} ({r['q1']:.3f} to {r['q3']:.3f})"
    return [*(f"{milliseconds(part['variants'][v]['seconds'])} ms" for v in ("plain", "learning")), ratio]


def select_rows(report: dict[str, Any] | None) -> Rows:
    """One row for each method that only selects."""
    found = {} if report is None else report.get("select", {})
    rows = []
    for name, (method, hidden) in SELECT_ROWS.items():
        title = f"Llama-style (6, {hidden}) to (12, 768), float32: `{method}`"
        rows.append([title, *_select_cells(found.get(name, {}))])
    return rows


def _select_cells(part: dict[str, Any]) -> list[str]:
    if part.get("status") != "measured":
        return [_why_not(part)] + [""] * (len(SELECT_HEADER) - 2)
    facts, over = part["facts"], part["speed-up"]
    return [
        milliseconds(part["seconds"]["ours"]),
        f"{part['gb_per_second']:.0f}",
        f"{part['of copy']['median']:.0%}",
        *(
            f"{over[p]['median']:.1f}x" if p in over else NOT_MEASURED
            for p in ("foreach", "index", "compiled")
        ),
        str(facts.get("launches", NOT_MEASURED)),
        f"{facts['host_ms']:.2f} ms" if "host_ms" in facts else NOT_MEASURED,
        part["graph"] or NOT_MEASURED,
    ]


def learning_rows(report: dict[str, Any] | None) -> Rows:
    """One row for each learning with `release_grads`."""
    rows = []
    for name, title in LEARNING.items():
        part = _part(report, "learning", name, "learning")
        cells = [_why_not(part), "", "", ""]
        if part.get("status") == "measured":
            cells = [
                f"{part['peak'] / 1e9:.1f} GB",
                f"{part['on paper'] / 1e9:.1f} GB",
                f"{part['step seconds']['median']:.2f} s",
                f"{part['losses'][0]:.2f} to {part['losses'][-1]:.2f}",
            ]
        rows.append([title, *cells])
    return rows


def _part(report: dict[str, Any] | None, name: str, precision: str, part: str) -> dict[str, Any]:
    if report is None:
        return {}
    row = report["rows"].get(f"{name} {precision}", {})
    found: dict[str, Any] = row.get(part, {k: row[k] for k in ("status", "reason") if k in row})
    return found


def _why_not(part: dict[str, Any]) -> str:
    """ "not measured", and the reason where there is one."""
    reason = part.get("reason")
    return f"{NOT_MEASURED}: {part['status']}, {reason}".replace("|", "/") if reason else NOT_MEASURED


def environment(report: dict[str, Any]) -> str:
    """Where a report was made, in a line."""
    hardware, versions = report["hardware"], report["versions"]
    return (
        f"{hardware['gpu']}, driver {hardware['driver']}, CUDA {versions['cuda']}, "
        f"torch {versions['torch']}, triton {versions['triton']}, commit {report['commit'][:7]}"
    )
