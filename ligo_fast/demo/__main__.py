"""Trains a small GPT-2 on real text, grows it by each method, trains every result, and compares the costs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NoReturn

import torch
import transformers
from rich.console import Console

import ligo_fast as lf

from .config import QUICK, Config
from .data import load_corpus
from .experiment import run_experiment
from .growth import ALL_METHODS, DEFAULT_METHODS, SCRATCH
from .plots import plot_curves, plot_maps
from .report import Row, as_json, compare, make_table

EXAMPLES = """examples:
  ligo-fast demo --quick
  ligo-fast demo --methods net2net+stack,pad+zero,ligo --data my-texts --out demo-out
  ligo-fast demo --methods all --width 256 --depth 8 --json > results.json
"""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Runs the demo as the command line says; returns the rows of its table.

    Raises:
        GrowthError: for arguments that cannot be run with, before anything is trained.
    """
    args = parser().parse_args(arguments)
    chosen = {f.name: getattr(args, f.name) for f in fields(Config) if getattr(args, f.name) is not None}
    config = replace(QUICK if args.quick else Config(), **chosen)
    config.check()
    methods = ALL_METHODS if args.methods == "all" else args.methods.split(",")
    # Scratch sets the target, so it always runs, and first.
    grown = [m for m in methods if m != SCRATCH]
    for method in grown:
        lf.methods.resolve(method)
    methods = [SCRATCH, *grown]
    transformers.logging.set_verbosity_error()  # a warning about the default loss, which is the right one
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = load_corpus(args.data)
    if (least := min(len(corpus.train), len(corpus.validation))) < config.length:
        raise lf.GrowthError(
            f"{corpus.source}: too short: a part has {least} bytes, --length is {config.length}"
        )
    make_folder(args.out)
    console = Console(stderr=args.json)
    console.print(
        f"{corpus.source}: {len(corpus.train) / 1e6:.1f} MB to train on, "
        f"{len(corpus.validation) / 1e6:.1f} MB held out; running on {device.type}"
    )

    results = run_experiment(config, methods, corpus, device)
    rows = compare(results.runs, results.small[-1].cost)
    text = as_json(
        data=corpus.source,
        config=config,
        rows=rows,
        small=results.small,
        runs=results.runs,
    )
    (args.out / "results.json").write_text(text + "\n")
    plot_curves(args.out / "curves.png", results.runs, results.small)
    if results.operator is not None:
        plot_maps(args.out / "maps.png", results.operator.depth_maps(), results.operator.width_maps())
    console.print(make_table(rows, results.small[-1]))
    console.print(f"{', '.join(sorted(f.name for f in args.out.iterdir()))} are in {args.out}")
    if args.json:
        print(text)
    return rows


def make_folder(out: Path) -> None:
    """The folder for the results, while there is nothing yet to lose."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise lf.GrowthError(f"--out: {out}: {error.strerror}") from error
    if not os.access(out, os.W_OK):
        raise lf.GrowthError(f"--out: {out}: it may not be written to")


class Parser(argparse.ArgumentParser):
    """Errors as every command has them."""

    def error(self, message: str) -> NoReturn:
        raise lf.GrowthError(f"demo: {message}")


def parser() -> argparse.ArgumentParser:
    """The command line; every setting of the configuration is an option."""
    parser = Parser(
        prog="ligo-fast demo",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="smaller models, fewer steps")
    parser.add_argument("--methods", default=",".join(DEFAULT_METHODS), help="names between commas, or: all")
    parser.add_argument("--data", type=Path, help="a text file or folder instead of Python's library")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the JSON and PNGs")
    parser.add_argument("--json", action="store_true", help="write one JSON object to standard output")
    settings = parser.add_argument_group("settings")
    for setting in fields(Config):
        option = f"--{setting.name.replace('_', '-')}"
        if isinstance(setting.default, bool):
            settings.add_argument(option, action=argparse.BooleanOptionalAction)
        else:
            settings.add_argument(option, type=type(setting.default))
    return parser


if __name__ == "__main__":
    from ..cli import app

    app(["demo", *sys.argv[1:]], prog_name="ligo-fast")
