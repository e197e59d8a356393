"""Trains a small GPT-2 on real text, grows it by each method, trains every result, and compares the costs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
import transformers
from rich.console import Console

import ligo_fast as lf

from .config import QUICK, Config
from .data import load_corpus
from .experiment import run_experiment
from .growth import ALL_METHODS, DEFAULT_METHODS, SCRATCH
from .plots import plot_curves, plot_maps
from .report import Row, compare, make_table, write_json


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Runs the demo as the command line says; returns the rows of its table."""
    command_line = parser()
    args = command_line.parse_args(arguments)
    chosen = {f.name: getattr(args, f.name) for f in fields(Config) if getattr(args, f.name) is not None}
    config = replace(QUICK if args.quick else Config(), **chosen)
    methods = ALL_METHODS if args.methods == "all" else args.methods.split(",")
    # Scratch sets the target, so it always runs, and first.
    grown = [m for m in methods if m != SCRATCH]
    for method in grown:
        try:
            lf.methods.resolve(method)
        except lf.GrowthError as error:
            command_line.error(str(error))
    methods = [SCRATCH, *grown]
    transformers.logging.set_verbosity_error()  # a warning about the default loss, which is the right one
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = load_corpus(args.data)
    console = Console()
    console.print(
        f"{corpus.source}: {len(corpus.train) / 1e6:.1f} MB to train on, "
        f"{len(corpus.validation) / 1e6:.1f} MB held out; running on {device.type}"
    )

    results = run_experiment(config, methods, corpus, device)
    rows = compare(results.runs, results.small[-1].cost)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(
        args.out / "results.json",
        data=corpus.source,
        config=config,
        rows=rows,
        small=results.small,
        runs=results.runs,
    )
    plot_curves(args.out / "curves.png", results.runs, results.small)
    if results.operator is not None:
        plot_maps(args.out / "maps.png", results.operator.depth_maps(), results.operator.width_maps())
    console.print(make_table(rows, results.small[-1]))
    console.print(f"{', '.join(sorted(f.name for f in args.out.iterdir()))} are in {args.out}")
    return rows


def parser() -> argparse.ArgumentParser:
    """The command line; every setting of the configuration is an option."""
    parser = argparse.ArgumentParser(prog="python -m ligo_fast.demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller models, fewer steps")
    parser.add_argument("--methods", default=",".join(DEFAULT_METHODS), help="names between commas, or: all")
    parser.add_argument("--data", type=Path, help="a text file or folder instead of Python's library")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the JSON and PNGs")
    settings = parser.add_argument_group("settings")
    for setting in fields(Config):
        option = f"--{setting.name.replace('_', '-')}"
        if isinstance(setting.default, bool):
            settings.add_argument(option, action=argparse.BooleanOptionalAction)
        else:
            settings.add_argument(option, type=type(setting.default))
    return parser


if __name__ == "__main__":
    main()
