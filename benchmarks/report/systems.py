"""Whole systems: a GPU, several processes, checkpoints on disk."""

from __future__ import annotations

import sys

from benchmarks import gpu_table
from benchmarks.report.markdown import found, measured_on, quartiles, read, table


def gpu() -> str:
    """Growing and learning on a GPU, from `make gpu-check`; every row is there, measured or not."""
    run = found("gpu")
    if run is not None and run["rehearsal"]:
        sys.exit("gpu.json is a rehearsal: nothing in it was measured")
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


def host() -> str:
    """What a call costs the host, from `python -m benchmarks.host`."""
    run = read("host")
    ratios = run["ratio to 1000 data_ptr()"]
    rows = [
        [
            call.replace("apply_", "`apply_`"),
            str(launches),
            quartiles(run["microseconds"][call], "{:.0f}"),
            *(["100", quartiles(ratios[call])] if call in ratios else ["", ""]),
        ]
        for call, launches in run["launches"].items()
    ]
    header = ["", "launches", "microseconds: median (quartiles)", "goal", "over 1000 data_ptr()"]
    return f"{table(header, rows)}\n\n{measured_on(run)}"


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
        rows.append([title, quartiles(run["ratios"][f"{name}, 2 processes / one"]), "at most 0.60"])
    where = (
        f"({run['hardware']['cpu']}, one thread a process, torch {run['versions']['torch']}, "
        f"commit {run['commit'][:7]}, `{run['command']}`)"
    )
    return f"{table(['', 'two processes / one: median (quartiles)', 'goal'], rows)}\n\n{where}"


def learning_memory() -> str:
    """Peaks of learning against plain training, from `python -m benchmarks.learning_memory`."""
    run = read("learning_memory")
    plain, *learning = run["variants"]
    peaks = {name: f"{found['peak'] / 1e6:.0f} MB" for name, found in run["variants"].items()}
    rows = [[f"{plain} training", peaks[plain], "", "", ""]]
    for name, (versus, ratio) in zip(learning, run["step's time"].items(), strict=True):
        shares = f"{run['peak / plain'][name]:.2f}", f"{run['peak / goal'][name]:.3f}"
        rows.append([name, peaks[name], *shares, f"{quartiles(ratio)} of {versus.split(' / ')[1]}'s"])
    header = ["", "peak", "of plain's", f"of the goal, {run['goal'] / 1e6:.0f} MB", "time of a step"]
    own = run["learning's own: factors, their gradients and moments"]
    small = run["variants"][learning[0]]["small weights held"]
    parts = (
        f"Of this the factors with their gradients and moments take {own / 1e6:.0f} MB, the small model "
        f"{small / 1e6:.0f} MB where it is in memory."
    )
    return f"{table(header, rows)}\n\n{parts}\n\n{measured_on(run)}"


def checkpoint() -> str:
    """Growing folders against a plain copy, from `python -m benchmarks.checkpoint`."""
    run = found("checkpoint")
    header = ["", "time / copy of the result", "goal", "peak resident", "goal"]
    names = {
        "layers": "16 to 24 layers by `--layers 0-11,4-15`",
        "width": "width 2048 to 3072 by `net2net`",
        "mergekit": "mergekit: the same 24 layers",
        "ligo": "width 2048 to 2304 by `ligo`, over its matmul floor",
    }
    if run is None:
        return table(header, [[text, "not measured", "", "", ""] for text in names.values()])
    if run["quick"]:
        sys.exit("checkpoint.json is of a tiny model: nothing in it was measured")

    def ratio(name: str) -> str:
        return quartiles(run["ratios"][name]) if name in run["ratios"] else "not measured"

    def peak(name: str) -> str:
        return f"{run['peak_bytes'][name] / 1e9:.2f} GB" if name in run["peak_bytes"] else ""

    rows = [
        [names["layers"], ratio("layers / copy"), "at most 2", peak("layers"), "at most 1 GB"],
        [names["width"], ratio("width / copy"), "at most 2", peak("width"), "at most 1 GB"],
        [names["mergekit"], ratio("mergekit / copy"), "", peak("mergekit"), ""],
        [names["ligo"], ratio("ligo / matmul floor"), "at most 1.3", peak("ligo"), "at most 1 GB"],
        ["the same, over the floor of bfloat16 products", ratio("ligo / bfloat16 matmul floor"), "", "", ""],
    ]
    load = run["hardware"]["load_average_at_start"]
    where = (
        f"({run['hardware']['cpu']}, {run['hardware']['cores']} cores, load {load:.0f} by others, torch "
        f"{run['versions']['torch']}, mergekit {run['mergekit'] or 'not installed'}, "
        f"commit {run['commit'][:7]}, `{run['command']}`)"
    )
    return f"{table(header, rows)}\n\n{where}"
