"""A Hugging Face checkpoint folder: its config, its shards and their tensors, checked and not loaded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GrowthError
from .header import Entry, read_header, read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# what travels with a model: tokenizers, generation settings, templates, licences
COMPANIONS = (".json", ".model", ".jinja", ".tiktoken")
TEXTS = ("vocab.txt", "merges.txt")
NOT_COMPANIONS = ("config.json", "growth.json", "trainer_state.json", "adapter_config.json")
WRITTEN = ("config.json", "growth.json", "README.md")
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class Checkpoint:
    """A folder as found.

    Attributes:
        folder: where it is. config: the content of config.json.
        entries: tensors by name, in the order of the shards and of their bytes.
        shards: the weight files.
    """

    folder: Path
    config: dict[str, Any]
    entries: dict[str, Entry]
    shards: list[Path]

    @property
    def name(self) -> str:
        """The folder's name; in Hugging Face's cache, where that is a hash, the repository's."""
        folder = Path(os.path.realpath(self.folder))
        repository = folder.parent.parent.name
        if folder.parent.name == "snapshots" and repository.startswith("models--"):
            return repository.removeprefix("models--").replace("--", "/")
        return folder.name

    @property
    def nbytes(self) -> int:
        return sum(e.nbytes for e in self.entries.values())

    def companions(self) -> list[Path]:
        """Small files that belong to the model whatever its size."""
        return sorted(p for p in self.folder.iterdir() if p.is_file() and is_companion(p))


def is_companion(file: Path) -> bool:
    """Whether a file is of a kind that is copied to the grown folder."""
    known = file.suffix in COMPANIONS or file.name in TEXTS or file.stem in ("LICENSE", "NOTICE")
    return known and file.name not in NOT_COMPANIONS and not file.name.endswith(".index.json")


def check_replaceable(folder: Path) -> None:
    """Whether a folder is a checkpoint, with nothing in it that growing would not write or copy.

    Raises:
        GrowthError: naming what says that it is not.
    """
    inside = sorted(folder.iterdir())
    try:
        read_config(folder / "config.json")
    except GrowthError as error:
        raise GrowthError(f"{folder}: no checkpoint, so it is not overwritten ({error})") from error
    if not any(SHARD.fullmatch(p.name) for p in inside):
        raise GrowthError(f"{folder}: no checkpoint, so it is not overwritten (no model.safetensors)")
    for p in inside:
        ours = p.name in WRITTEN or SHARD.fullmatch(p.name) or is_companion(p)
        if p.is_dir() or not ours:
            raise GrowthError(f"{folder}: not overwritten: {p.name} in it is no part of a checkpoint")


def read_config(file: Path) -> dict[str, Any]:
    """The content of a config.json.

    Raises:
        GrowthError: for a file that is missing or no JSON object with a model_type.
    """
    try:
        config = read_json(file.read_bytes(), str(file))
    except OSError as error:
        raise GrowthError(f"{file}: {error.strerror}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise GrowthError(f"{file}: no model_type")
    return config


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Read and check a checkpoint folder; no tensor is read and nothing is unpickled.

    Raises:
        GrowthError: naming the file and the field that is wrong.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        raise GrowthError(f"{folder}: no folder")
    config = read_config(folder / "config.json")
    try:
        shards = _shards(folder)
        entries = _entries(folder, shards)
    except OSError as error:
        raise GrowthError(f"{error.filename}: {error.strerror}") from error
    if not entries:
        raise GrowthError(f"{folder}: its weight files have no tensors")
    return Checkpoint(folder, config, entries, [folder / name for name in shards])


def _shards(folder: Path) -> dict[str, set[str] | None]:
    """File name -> the tensors that the index says it has; None without an index."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.exists():
        return {WEIGHTS: None}
    if not index.exists():
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
        if pickled:
            raise GrowthError(
                f"{folder / pickled[0]}: only safetensors are read, pickled weights never: save it again "
                "with save_pretrained"
            )
        raise GrowthError(f"{folder}: neither {WEIGHTS} nor {INDEX}")
    content = read_json(index.read_bytes(), str(index))
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise GrowthError(f"{index}: weight_map: an object of tensor -> file is needed")
    shards: dict[str, set[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or file != Path(file).name or file in ("", ".", ".."):
            raise GrowthError(f"{index}: weight_map: {name}: {file!r} is no file name in this folder")
        if not file.endswith(".safetensors"):
            raise GrowthError(f"{index}: weight_map: {name}: {file!r} is no safetensors file")
        names = shards.setdefault(file, set())
        assert names is not None
        names.add(name)
    for file in shards:
        if not (folder / file).is_file():
            raise GrowthError(f"{index}: weight_map: the file {file} is missing")
    return dict(sorted(shards.items()))


def _entries(folder: Path, shards: dict[str, set[str] | None]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for file, listed in shards.items():
        found = read_header(folder / file)
        if listed is not None and (odd := sorted(listed ^ set(found))):
            where = "the index has it there" if odd[0] in listed else "the index does not have it there"
            raise GrowthError(f"{folder / file}: tensor {odd[0]}: {where}, the file says otherwise")
        entries |= found
    return entries
