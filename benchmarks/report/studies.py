"""Studies of what growing saves: the demo, LiGO's defaults, the optimizer's state."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.report.markdown import percent, read, table


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
