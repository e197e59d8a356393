"""The weights of a model on the meta device, read from its checkpoint folder when they are needed.

They are read, not mapped: the pages of a mapping count as memory of the process for as long as it lives.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..architectures import architecture_of
from ..errors import GrowthError
from ..models.tables import check_finite, is_tied
from .folder import open_checkpoint
from .header import Entry
from .skeleton import read_source

Seen = tuple[int, int, int]  # a file's inode, size and time of its last change


@dataclass(frozen=True)
class WeightFiles:
    """Where each parameter of a model lies in files, and how the files looked when that was found out.

    Made by `weight_files`.
    """

    entries: dict[str, Entry]
    seen: dict[Path, Seen]

    def check(self) -> None:
        """Raises GrowthError for a file that is not what it was, naming it."""
        for file in self.seen:
            try:
                self._check(file, os.stat(file))
            except OSError as error:
                raise GrowthError(f"{file}: {error.strerror}") from error

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A parameter of the model in a dtype, in new memory on a device.

        Raises:
            GrowthError: for a file that is not what it was, naming it.
        """
        entry = self.entries[name]
        pinned = device.type == "cuda"  # which then copies by itself
        flat = torch.empty(entry.nbytes, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        try:
            with entry.file.open("rb") as stream:
                stream.seek(entry.start)
                stream.readinto(memoryview(flat.numpy()))
                self._check(entry.file, os.fstat(stream.fileno()))  # also that nobody wrote meanwhile
        except OSError as error:
            raise GrowthError(f"{entry.file}: tensor {entry.name}: {error.strerror}") from error
        return flat.view(entry.dtype).view(entry.shape).to(device, dtype, non_blocking=True)

    def _check(self, file: Path, now: os.stat_result) -> None:
        if _seen(now) != self.seen[file]:
            raise GrowthError(f"{file}: the file has changed since the operator was made")


def weight_files(folder: str | Path, model: nn.Module) -> WeightFiles:
    """The files of a checkpoint folder that have the weights of `model`; every tensor was read once.

    Parameters and tensors belong together by their row in the model's table, so that a folder's names may
    have the prefix of a head or lack it.

    Raises:
        GrowthError: for a folder that is not of such a model, a tensor that is missing, misshapen, NaN or
            infinite, naming file and tensor.
    """
    checkpoint = open_checkpoint(folder)
    seen = {file: _seen(file.stat()) for file in checkpoint.shards}  # before anything is read from them
    source, architecture = read_source(checkpoint), architecture_of(model)
    config = checkpoint.folder / "config.json"
    if source.architecture is not architecture:
        raise GrowthError(
            f"{config}: model_type: a {source.architecture.name!r}, the source is a {architecture.name!r}"
        )
    if (heads := source.heads()) and is_tied(architecture, model):
        file = source.weights[heads[0]].file
        raise GrowthError(f"{file}: tensor {heads[0]}: an output head that the source ties to its embedding")
    rows = {architecture.lookup(name): entry for name, entry in source.weights.items()}
    found: dict[str, Entry] = {}
    for name, p in model.named_parameters():
        entry = rows.get(architecture.lookup(name))
        if entry is None:
            raise GrowthError(f"{checkpoint.folder}: no tensor for parameter {name} of the source")
        if entry.shape != tuple(p.shape):
            raise GrowthError(
                f"{entry.file}: tensor {entry.name}: {list(entry.shape)}, the source's parameter {name} is "
                f"{list(p.shape)}"
            )
        found[name] = entry
    files = WeightFiles(found, seen)
    cpu = torch.device("cpu")
    for name, p in model.named_parameters():
        check_finite([(f"{name} ({found[name].file})", files.read(name, p.dtype, cpu))])
    return files


def _seen(file: os.stat_result) -> Seen:
    return file.st_ino, file.st_size, file.st_mtime_ns
