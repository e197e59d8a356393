"""The commands of `ligo-fast`. What is slow to import is loaded when it is needed: torch when the arguments
are right, transformers by the commands that run models only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .errors import GrowthError, VerifyError
from .hashing import Hashes
from .startup import load_torch

BAD_INPUT, NOT_THE_SAME = 2, 3
EPILOG = (
    "Exit codes: 0 done; 2 bad input, or a folder or disk that cannot be used; 3 a comparison failed "
    "(--verify, certify); 130 and 143 interrupted, nothing is left behind; 1 anything else."
)

app = typer.Typer(
    help="Grow trained transformers wider and deeper, from checkpoint folder to checkpoint folder.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Write one JSON object to standard output.")]


def run() -> None:
    """The entry point."""
    signal.signal(signal.SIGTERM, _terminated)
    app(prog_name="ligo-fast")


def _terminated(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)  # an exception, so that nothing is left behind


@contextlib.contextmanager
def errors(as_json: bool = False) -> Iterator[None]:
    """One line for bad input, and its exit code."""
    try:
        yield
    except GrowthError as error:
        message = " ".join(str(error).split())
        print(f"ligo-fast: {message}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": message}))
        raise typer.Exit(NOT_THE_SAME if isinstance(error, VerifyError) else BAD_INPUT) from None


def _say(content: dict[str, Any], as_json: bool, title: str) -> None:
    """An object as JSON, or as a table."""
    if as_json:
        print(json.dumps(content))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for key, value in content.items():
        table.add_row(key.replace("_", " "), _words(value, key in ("axes", "parameters")))
    Console().print(table)


def _words(value: Any, change: bool = False) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{k} {_words(v, change)}" for k, v in value.items())
    if isinstance(value, list):
        if change:
            return " -> ".join(f"{v:,}" for v in value)
        shown = ", ".join(str(v) for v in value[:8])
        return f"{shown}, … ({len(value)})" if len(value) > 8 else shown or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@app.command(
    epilog="""Examples:

ligo-fast grow small large --width 1024 --depth 24 --method net2net+stack

ligo-fast grow small large --layers 0-11,4-15

ligo-fast grow small large --target config.json --method tile+zero --verify

ligo-fast grow small large --width 1024 --method net2net --noise 0.5

ligo-fast grow small large --operator learned.safetensors

ligo-fast grow small large --depth 24 --dry-run --json"""
)
def grow(
    small: Annotated[Path, typer.Argument(help="Checkpoint folder: config.json and safetensors.")],
    out: Annotated[Path, typer.Argument(help="Folder to make; absent or empty, unless --overwrite.")],
    width: Annotated[int | None, typer.Option(help="Residual width of the result.")] = None,
    depth: Annotated[int | None, typer.Option(help="Layers of the result.")] = None,
    method: Annotated[
        str | None, typer.Option(help="A method, or width+depth.", show_default="random+stack")
    ] = None,
    target: Annotated[Path | None, typer.Option(help="config.json with the sizes of the result.")] = None,
    operator: Annotated[Path | None, typer.Option(help="File of a saved operator.")] = None,
    layers: Annotated[str | None, typer.Option(help="Source layers by hand, as in 0-11,4-15.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 …")] = "cpu",
    shard_size: Annotated[str, typer.Option(help="Largest weight file.")] = "5GB",
    seed: Annotated[int | None, typer.Option(help="Of everything random.", show_default="0")] = None,
    noise: Annotated[float | None, typer.Option(help="On copies, in deviations; exactness stays.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, sizes and time; write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint folder that is there.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the result again and compare hashes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Grow a checkpoint folder into a larger one.

    The source is read where it lies and the result written part by part, so that neither model is ever in
    memory. The folder appears whole or not at all; it does not of a source with NaN or infinity in it.
    """
    with errors(as_json), Hashes() as hashes:
        if not dry_run:
            hashes.begin_folder(small)
        load_torch()
        from .checkpoint import plan_growth, run_plan
        from .checkpoint.describe import plan_facts
        from .checkpoint.grow import check_place

        plan = plan_growth(
            small, width=width, depth=depth, method=method, target=target, operator=operator, layers=layers,
            dtype=dtype, shard_size=shard_size, seed=seed, noise=noise, device=device,
        )  # fmt: skip
        place = Path(os.path.realpath(out))
        if dry_run:
            check_place(plan, place, overwrite)
            _say(plan_facts(plan, place), as_json, f"{small} -> {out}, nothing written")
            return
        for note in plan.notes:
            print(f"ligo-fast: {note}", file=sys.stderr)
        with _bar(sum(s.size for s in plan.shards), as_json) as bar:
            record = run_plan(plan, out, overwrite, verify, bar, hashes)
    if as_json:
        print(json.dumps({"out": str(out), "notes": plan.notes, **record}))
    else:
        a, b = record["parameters"]
        print(f"{out}: {record['method']}, {a:,} -> {b:,} parameters, {plan.nbytes / 1e9:.2f} GB")


@contextlib.contextmanager
def _bar(total: int, quiet: bool) -> Iterator[Any]:
    """A progress bar on standard error, where that is a terminal."""
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    columns = [
        rich.TextColumn("growing"),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    ]
    if quiet or not console.is_terminal:
        yield lambda done: None
        return
    with rich.Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("growing", total=total)
        yield lambda done: progress.advance(task, done)


@app.command(epilog="Example: ligo-fast certify small large")
def certify(
    small: Annotated[Path, typer.Argument(help="The source's folder.")],
    out: Annotated[Path, typer.Argument(help="The grown folder.")],
    operator: Annotated[Path | None, typer.Option(help="File of the operator that was used.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Length of the sample, if the model takes it.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    as_json: Json = False,
) -> None:
    """Run both models on sample input: is the function kept? Exit code 3 if it is not."""
    with errors(as_json):
        from .checkpoint.compare import certify_folders

        certificate, notes = certify_folders(small, out, operator, length=tokens, seed=seed)
        if as_json:
            content = dataclasses.asdict(certificate) | {"exact": certificate.exact, "notes": notes}
            print(json.dumps(content))
        else:
            print("\n".join([str(certificate), *notes]))
    if not certificate.exact:
        raise typer.Exit(NOT_THE_SAME)


@app.command(epilog="Example: ligo-fast inspect small --json")
def inspect(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder.")], as_json: Json = False
) -> None:
    """Axes, sizes, and what a checkpoint could grow to; the folder is checked as grow checks its source."""
    with errors(as_json):
        load_torch()
        from .checkpoint.describe import describe

        _say(describe(folder), as_json, str(folder))


@app.command(
    epilog="""Examples:

ligo-fast bench

ligo-fast bench --shape 12x768:24x1024 --model gpt2 --dtype bfloat16 --device cuda

ligo-fast bench --shape 6x512:12x768 --method net2net+stack --profile trace.json

ligo-fast bench 100m-ligo 100m-net2net --json"""
)
def bench(
    cases: Annotated[list[str] | None, typer.Argument(help="Named cases; --list has them.")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="LAYERSxHIDDEN:LAYERSxHIDDEN, small:large; may be repeated.")
    ] = None,
    model: Annotated[str, typer.Option(help="Family of --shape: llama, gpt2 or bert.")] = "llama",
    method: Annotated[str | None, typer.Option(help="As for grow; ligo or the case's if not given.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seconds: Annotated[float, typer.Option(min=0.0, help="For the rounds of each row.")] = 8.0,
    profile: Annotated[Path | None, typer.Option(help="Write a Chrome trace of one call of each.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="The named cases, and nothing else.")] = False,
    as_json: Json = False,
) -> None:
    """Time growing on this machine: random weights of these shapes, plain torch and the floor in turn.

    No checkpoint is read. A result that is wrong has no number and exit code 3. The floor is the larger of
    the fewest bytes at the rate of a copy and the fewest FLOPs at the rate of a product, both timed here.
    """
    with errors(as_json):
        from rich.console import Console
        from rich.table import Table

        from .bench import command
        from .bench.cases import CASES
        from .bench.measure import effort_for
        from .checkpoint.device import read_device

        if listed:
            _say({c.name: f"{c.title}, {c.method}" for c in CASES.values()}, as_json, "cases")
            return
        wanted = command.chosen(cases or [], shape or [], model, method, dtype)
        where = read_device(device)
        if profile is not None:
            command.trace(wanted, where, profile)
        rows = list(command.measure(wanted, where, effort_for(where, seconds)))
        if as_json:
            print(json.dumps(command.facts(where) | {"rows": rows}))
        else:
            table = Table()
            for column, name in enumerate(command.HEADER):
                table.add_column(name, min_width=0 if column else 24)
            for row in rows:
                table.add_row(*command.cells(row))
            Console(width=None if sys.stdout.isatty() else 150).print(table)
    if any(row["status"] != "measured" for row in rows):
        raise typer.Exit(NOT_THE_SAME)


@app.command(epilog="Example: ligo-fast info")
def info(as_json: Json = False) -> None:
    """Versions, and which backends work or why not."""
    from .info import facts, report

    print(json.dumps(facts()) if as_json else report())


@app.command(
    epilog="Example: ligo-fast demo --quick",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def demo(context: typer.Context) -> None:
    """Train a small GPT-2, grow it by each method and compare; --help lists its settings."""
    try:
        from .demo.__main__ import main
    except ImportError as error:
        print(f"ligo-fast: {error}: pip install 'ligo-fast[demo]'", file=sys.stderr)
        raise typer.Exit(BAD_INPUT) from None
    with errors("--json" in context.args):
        main(context.args)
