"""Tables in README.md and docs/ from the JSONs in benchmarks/results/: `python -m benchmarks.report`.

A table stands between `<!-- name -->` and `<!-- /name -->`. `--check` writes nothing and fails where a
document and the JSONs disagree.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import gpu_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    """One JSON of results."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is left-aligned."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.1%}"


def demo() -> str:
    """What each method saves, from one run of `make demo`."""
    run = read("demo")
    config, small = run["config"], run["small"][-1]
    rows = [
        [
            f"`{r['method']}`",
            f"{r['initial_loss']:.3f}",
            f"{r['final_loss']:.3f}",
            "" if r["flops"] is None else f"{r['flops'] / 1e12:.2f}",
            "" if r["seconds"] is None else f"{r['seconds']:.0f} s",
            percent(r["saved"]),
            percent(r["saved_small_free"]),
        ]
        for r in run["rows"]
    ]
    header = [
        "method",
        "loss after growth",
        "final loss",
        "TFLOP to target",
        "time",
        "saved",
        "saved, small model free",
    ]
    text = (
        f"One run of `make demo` (seed {config['seed']}): byte-level GPT-2, {config['small_depth']} layers "
        f"of {config['small_width']} to {config['depth']} of {config['width']}, on Python's standard "
        f"library; {config['small_steps']} steps for the small model (loss {small['loss']:.3f}, "
        f"{small['cost']['flops'] / 1e12:.2f} TFLOP), {config['steps']} for each large one. Target: "
        "scratch's final validation loss. Saved = 1 - F / F_scratch, counting the small model and the "
        "operator's learning; the last column leaves the small model out, as papers do."
    )
    env = run["environment"]
    where = f"({env['hardware']}, {env['threads']} threads, torch {env['torch']}, commit {env['commit'][:7]})"
    return f"{text}\n\n{table(header, rows)}\n\n{where}"


def cpu() -> str:
    """Ratios against the published operation sequence, from `make bench`."""
    run = read("cpu")
    ratios, memory = run["ratios"], run["extra_memory"]

    def ratio(name: str) -> str:
        r = ratios[name]
        return f"{r['median']:.2f} ({r['q1']:.2f} to {r['q3']:.2f})"

    def share(side: str, kind: str) -> str:
        return ", ".join(f"{memory[f'{side}, {way}']:{kind}}" for way in ("forward", "backward"))

    rate = ratio("apply_: design FLOPs at matmul rate / time")
    rows = [
        ["`apply_` / published sequence", ratio("apply_ / as published"), "at most 0.33"],
        ["pull-back / its backward", ratio("pullback / as published"), "at most 0.33"],
        ["`apply_` / published, maps shared as ours", ratio("apply_ / published forward"), ""],
        ["pull-back / its backward, maps shared as ours", ratio("pullback / published backward"), ""],
        ["`apply_`: rate on the design's FLOPs / matmul rate", rate, "at least 0.80"],
        ["extra memory / large model: `apply_`, pull-back", share("ours", ".1%"), "under 10%"],
        ["the same, published: forward, backward", share("published", ".0%"), ""],
    ]
    for tokens, part in run["learning"].items():
        r = part["step / plain"]
        added = part["difference / plain"]["median"]
        cell = f"{r['median']:.1%} ({added:+.1%} as a difference of whole steps)"
        rows.append([f"`GrowthOptimizer.step()` / plain step, {tokens}", cell, ""])
    return f"{table(['', 'measured: median (quartiles)', 'goal'], rows)}\n\n{measured_on(run)}"


def select() -> str:
    """Training-free growth against copies on the CPU, from `python -m benchmarks.select`."""
    run = read("select")

    def cell(row: dict[str, Any], key: str) -> str:
        r = row[key]
        return f"{r['median']:.2f} ({r['q1']:.2f} to {r['q3']:.2f})"

    rows = [
        [
            f"`{row['method']}`, {row['small']} to {row['large']}",
            f"{row['bytes'] / 1e6:.0f} MB",
            f"{row['gb_per_second']:.1f}",
            *(cell(row, key) for key in ("of memcpy", "over index", "over foreach")),
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


def measured_on(run: dict[str, Any]) -> str:
    """Where and how, in a line."""
    hardware, versions = run["hardware"], run["versions"]
    return (
        f"({hardware['cpu']}, {hardware['threads']} threads, torch {versions['torch']}, "
        f"commit {run['commit'][:7]}, `{run['command']}`)"
    )


def defaults() -> str:
    """The study behind LiGO's defaults, from `python -m benchmarks.defaults`."""
    run = read("defaults")
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, result in run["results"].items():
        groups.setdefault(key.rpartition(" / ")[0], []).append(result)
    ranked = sorted(groups.items(), key=lambda item: -mean(r["saved_small_free"] for r in item[1]))
    rows = [
        [
            name,
            str(len(results)),
            *(percent(mean(r[k] for r in results)) for k in ("saved", "saved_small_free")),
            ", ".join(f"{r['saved_small_free']:.0%}" for r in results),
            *(f"{mean(r[k] for r in results):.3f}" for k in ("initial_loss", "final_loss")),
        ]
        for name, results in ranked
    ]
    header = [
        "variant",
        "seeds",
        "saved",
        "saved, small free",
        "each seed",
        "loss after growth",
        "final loss",
    ]
    return table(header, rows)


def optimizer_state() -> str:
    """What carrying the moments over is worth, from `python -m benchmarks.optimizer_state`."""
    run = read("optimizer_state")
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, result in run["results"].items():
        groups.setdefault(key.rpartition(" / ")[0], []).append(result)
    rows = []
    for name, results in groups.items():
        method, policy = name.split(", ")
        early = [f"{mean(r['losses'][step] for r in results):.3f}" for step in ("20", "40", "100")]
        rows.append(
            [
                f"`{method}`, `{policy}`",
                percent(mean(r["saved_small_free"] for r in results)),
                ", ".join(f"{r['saved_small_free']:.1%}" for r in results),
                f"{mean(r['initial_loss'] for r in results):.3f}",
                *early,
                f"{mean(r['final_loss'] for r in results):.3f}",
            ]
        )
    header = ["method, policy", "saved, small free", "each seed", "loss after growth"]
    header += ["20 steps later", "40", "100", "at the end"]
    env = run["environment"]
    commits = " and ".join(dict.fromkeys(r["commit"][:7] for r in run["runs"]))
    where = f"({env['hardware']}, {env['threads']} thread, torch {env['torch']}, commits {commits})"
    return f"{table(header, rows)}\n\n{where}"


def gpu() -> str:
    """Growing and learning on a GPU, from `make gpu-check`; every row is there, measured or not."""
    path = RESULTS / "gpu.json"
    run = read("gpu") if path.exists() else None
    if run is not None and run["rehearsal"]:
        sys.exit(f"{path} is a rehearsal: nothing in it was measured")
    growth, selections, step, learning = (
        table(header, rows)
        for header, rows in (
            (gpu_table.GROWTH_HEADER, gpu_table.growth_rows(run)),
            (gpu_table.SELECT_HEADER, gpu_table.select_rows(run)),
            (gpu_table.STEP_HEADER, gpu_table.step_rows(run)),
            (gpu_table.LEARNING_HEADER, gpu_table.learning_rows(run)),
        )
    )
    where = "" if run is None else f"\n\n({gpu_table.environment(run)}, `{run['command']}`)"
    return f"{growth}\n\n{selections}\n\n{step}\n\n{learning}{where}"


def sharded() -> str:
    """Growth on two processes beside one, from `python -m benchmarks.sharded`."""
    run = read("sharded")
    names = {
        "`ligo`: `apply_`": "ligo: apply_",
        "`ligo`: pull-back": "ligo: pullback",
        "`net2net+stack`: `apply_`": "net2net+stack: apply_",
    }
    rows = []
    for title, name in names.items():
        r = run["ratios"][f"{name}, 2 processes / one"]
        rows.append([title, f"{r['median']:.2f} ({r['q1']:.2f} to {r['q3']:.2f})", "at most 0.60"])
    where = (
        f"({run['hardware']['cpu']}, one thread a process, torch {run['versions']['torch']}, "
        f"commit {run['commit'][:7]}, `{run['command']}`)"
    )
    return f"{table(['', 'two processes / one: median (quartiles)', 'goal'], rows)}\n\n{where}"


def checkpoint() -> str:
    """Growing folders against a plain copy, from `python -m benchmarks.checkpoint`."""
    path = RESULTS / "checkpoint.json"
    header = ["", "time / copy of the result", "goal", "peak resident", "goal"]
    names = {
        "layers": "16 to 24 layers by `--layers 0-11,4-15`",
        "width": "width 2048 to 3072 by `net2net`",
        "mergekit": "mergekit: the same 24 layers",
        "ligo": "width 2048 to 2304 by `ligo`, over its matmul floor",
    }
    if not path.exists():
        return table(header, [[text, "not measured", "", "", ""] for text in names.values()])
    run = read("checkpoint")
    if run["quick"]:
        sys.exit(f"{path} is of a tiny model: nothing in it was measured")

    def ratio(name: str) -> str:
        if name not in run["ratios"]:
            return "not measured"
        r = run["ratios"][name]
        return f"{r['median']:.2f} ({r['q1']:.2f} to {r['q3']:.2f})"

    def peak(name: str) -> str:
        return f"{run['peak_bytes'][name] / 1e9:.2f} GB" if name in run["peak_bytes"] else ""

    rows = [
        [names["layers"], ratio("layers / copy"), "at most 2", peak("layers"), "at most 1 GB"],
        [names["width"], ratio("width / copy"), "at most 2", peak("width"), "at most 1 GB"],
        [names["mergekit"], ratio("mergekit / copy"), "", peak("mergekit"), ""],
        [names["ligo"], ratio("ligo / matmul floor"), "at most 1.3", peak("ligo"), ""],
    ]
    load = run["hardware"]["load_average_at_start"]
    where = (
        f"({run['hardware']['cpu']}, {run['hardware']['cores']} cores, load {load:.0f} by others, torch "
        f"{run['versions']['torch']}, mergekit {run['mergekit'] or 'not installed'}, "
        f"commit {run['commit'][:7]}, `{run['command']}`)"
    )
    return f"{table(header, rows)}\n\n{where}"


README = ROOT / "README.md"
TABLES = {
    "demo": (README, demo),
    "cpu": (README, cpu),
    "select": (README, select),
    "gpu": (README, gpu),
    "checkpoint": (README, checkpoint),
    "defaults": (ROOT / "docs" / "defaults.md", defaults),
    "sharded": (ROOT / "docs" / "distributed.md", sharded),
    "optimizer-state": (ROOT / "docs" / "optimizer-state.md", optimizer_state),
}


def fill(name: str, text: str, content: str) -> str:
    """The document with a table put into its place."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"there is no place for the table {name}")
    return pattern.sub(lambda m: f"{m[1]}{content}\n{m[2]}", text)


def main() -> None:
    """Fill every table, or check it."""
    for name, (path, make) in TABLES.items():
        text = path.read_text()
        new = fill(name, text, make())
        if "--check" not in sys.argv[1:]:
            path.write_text(new)
        elif new != text:
            sys.exit(f"{path.name}: the table {name} is not what the JSON says: make report")


if __name__ == "__main__":
    main()
