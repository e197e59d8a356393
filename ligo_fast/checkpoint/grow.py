"""`grow_checkpoint`: from one folder to a larger one, file to file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import GrowthError
from ..growth import hash_maps
from ..hashing import Hashes, read_file
from .card import as_json, growth_record, model_card
from .device import Direct, Staged
from .digests import verify
from .header import read_json
from .layout import index_file
from .planned import Plan, plan_growth
from .stream import write_shards
from .swap import check_target, replaced


def grow_checkpoint(
    small: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    check: bool = False,
    progress: Callable[[int], None] = lambda done: None,
    **how: Any,
) -> dict[str, Any]:
    """Grow a Hugging Face checkpoint folder into another, without ever holding a model in memory.

    The result loads with `from_pretrained`. It appears whole or not at all; see `ligo_fast.checkpoint.swap`.

    Args:
        small: a folder with config.json and safetensors. out: a folder that is absent or empty.
        overwrite: replace a checkpoint folder at `out`; one with anything else in it is left alone.
        check: read everything again and compare it with what was grown (`--verify` of the command).
        progress: called with numbers of bytes as they are grown.
        how: `width`, `depth`, `method` ("random+stack" if nothing is said) and its options, `noise`,
            `seed`; `layers` ("0-11,4-15") in place of a depth method; `target` (a config.json) in place of
            width and depth; `operator` (a file of `save_operator`) in place of method, layers, options,
            noise and seed; `dtype` ("float32", "bfloat16", "float16"), `shard_size` ("5GB", or in bytes),
            `device`.

    Returns:
        The content of growth.json.

    Raises:
        GrowthError: naming file and field, or a tensor of the source with NaN or infinity and how many, which
            is known when its files were read; nothing is left behind.
    """
    with Hashes() as hashes:
        hashes.begin_folder(Path(small))
        return run_plan(plan_growth(small, **how), out, overwrite, check, progress, hashes)


def run_plan(
    plan: Plan,
    out: str | Path,
    overwrite: bool = False,
    check: bool = False,
    progress: Callable[[int], None] = lambda done: None,
    hashes: Hashes | None = None,
) -> dict[str, Any]:
    """Carry a plan out; see `grow_checkpoint`. `hashes`: of the source, where they were begun before."""
    if hashes is None:
        with Hashes() as hashes:
            return run_plan(plan, out, overwrite, check, progress, hashes)
    place, checkpoint = Path(os.path.realpath(out)), plan.source.checkpoint
    check_place(plan, place, overwrite)
    digests: dict[str, str] | None = {} if check else None
    sources = [*checkpoint.shards, checkpoint.folder / "config.json"]
    hashes.begin(*sources)
    with replaced(place, overwrite) as folder, room_for_others():
        try:
            engine = Direct(plan.op) if plan.device.type == "cpu" else Staged(plan.op, plan.device)
            write_shards(engine, plan.units, plan.source.weights, plan.shards, folder, progress, digests)
            _check_finite(plan, hashes)
            if digests is not None:
                verify(plan.shards, folder, digests)
            record = _record(plan, hashes.of(sources), digests)
            _write_small(plan, folder, record)
        except OSError as error:
            raise GrowthError(f"{error.filename or place}: {error.strerror}") from error
    return record


@contextlib.contextmanager
def room_for_others() -> Iterator[None]:
    """One thread less for torch where its idle threads spin on the core that what hashes and writes needs."""
    threads = torch.get_num_threads()
    sleeping = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    torch.set_num_threads(threads if sleeping else max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_place(plan: Plan, place: Path, overwrite: bool) -> None:
    """Whether the result may go there and has room.

    Raises:
        GrowthError: naming the place and the numbers.
    """
    own = Path(os.path.realpath(plan.source.checkpoint.folder))
    if place == own or place in own.parents or own in place.parents:
        raise GrowthError(f"{place}: it is, holds or lies in the source's folder {own}")
    try:
        check_target(place, overwrite)
        disk = os.statvfs(place.parent)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise GrowthError(f"{place}: {error.strerror}") from error
    free = disk.f_bavail * disk.f_frsize
    if plan.nbytes > free:
        raise GrowthError(f"{place}: {plan.nbytes:,} bytes are needed, {free:,} are free")


def _check_finite(plan: Plan, hashes: Hashes) -> None:
    """Raises GrowthError for a source with NaN or infinity in a parameter, naming it and how many."""
    found = {file: hashes.not_finite(file) for file in plan.source.checkpoint.shards}
    for name, entry in plan.source.weights.items():
        if bad := found[entry.file].get(name):
            n = entry.nbytes // entry.dtype.itemsize
            raise GrowthError(f"{entry.file}: tensor {name}: {bad} of {n} values are NaN or infinite")


def _record(plan: Plan, hashes: dict[str, str], digests: dict[str, str] | None) -> dict[str, Any]:
    from .. import __version__

    folder = plan.source.checkpoint.folder
    source: dict[str, Any] = {"name": plan.source.checkpoint.name, "sha256": hashes}
    if (folder / "growth.json").is_file():
        source["growth"] = read_json((folder / "growth.json").read_bytes(), str(folder / "growth.json"))
    facts: dict[str, Any] = {
        "parameters": list(plan.parameters),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "source": source,
        "maps_sha256": hash_maps(plan.op.growth),
    }
    if plan.operator_file is not None:
        facts["operator"] = {"name": plan.operator_file.name, "sha256": read_file(plan.operator_file).sha256}
    if digests is not None:
        facts["tensors_sha256"] = digests
    return growth_record(plan.op, __version__, facts)


def _write_small(plan: Plan, folder: Path, record: dict[str, Any]) -> None:
    """The small files, on the disk when this returns."""
    files = {p.name: p.read_bytes() for p in plan.companions}
    files |= {
        "config.json": as_json(plan.config),
        "growth.json": as_json(record),
        "README.md": model_card(record, plan.op.is_learned),
    }
    if (index := index_file(plan.shards)) is not None:
        files |= dict([index])
    for name, content in files.items():
        with (folder / name).open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
