"""Text as bytes, split by files into training and validation, and batches that repeat bit for bit."""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import GrowthError

VOCABULARY = 256
VALIDATION_SHARE = 0.1
# Installed packages, tests and generated tables are not the library's own source.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class Corpus:
    """Two byte strings (uint8) with no file in common."""

    train: Tensor
    validation: Tensor
    source: str


def load_corpus(path: Path | None = None) -> Corpus:
    """Reads the text files under ``path``, or the Python standard library's source code.

    Raises:
        GrowthError: for a path that cannot be read or has no text.
    """
    try:
        documents, source = _documents(path)
    except OSError as error:
        raise GrowthError(f"{error.filename}: {error.strerror}") from error
    if not any(documents.values()):
        raise GrowthError(f"{source}: no text")
    train, validation = split(documents)
    return Corpus(to_tokens(train), to_tokens(validation), source)


def _documents(path: Path | None) -> tuple[dict[str, bytes], str]:
    """The texts by name, and where they come from."""
    if path is None:
        folder = Path(sysconfig.get_paths()["stdlib"])
        files = (f for f in folder.rglob("*.py") if not SKIPPED_FOLDERS & {*f.relative_to(folder).parts})
        return read_texts(folder, files), f"Python {sysconfig.get_python_version()} standard library"
    if path.is_dir():
        return read_texts(path, path.rglob("*")), str(path)
    return {path.name: path.read_bytes()}, str(path)


def read_texts(folder: Path, files: Iterable[Path]) -> dict[str, bytes]:
    """The contents of the files that are UTF-8 text and not hidden, by their paths in ``folder``."""
    documents = {}
    for file in files:
        relative = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts):
            content = file.read_bytes()
            if content and is_text(content):
                documents[relative.as_posix()] = content
    return documents


def is_text(content: bytes) -> bool:
    """Whether the bytes are UTF-8 without a NUL."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def split(documents: dict[str, bytes]) -> tuple[bytes, bytes]:
    """Training and validation text: whole files, drawn by a hash of their names; one file is cut in two."""
    if len(documents) == 1:
        [content] = documents.values()
        cut = round(len(content) * (1 - VALIDATION_SHARE))
        return content[:cut], content[cut:]
    names = sorted(documents, key=lambda name: (zlib.crc32(name.encode()), name))
    held_out = max(1, round(len(names) * VALIDATION_SHARE))
    validation, train = names[:held_out], names[held_out:]
    return b"\n".join(documents[n] for n in train), b"\n".join(documents[n] for n in validation)


def to_tokens(text: bytes) -> Tensor:
    """One token a byte."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


@dataclass(frozen=True)
class Batches:
    """Random windows of a text; the batch of a step depends on the seed and the step alone."""

    text: Tensor
    rows: int
    length: int
    seed: int
    device: torch.device

    def __post_init__(self) -> None:
        if len(self.text) < self.length:
            raise GrowthError(f"the text has {len(self.text)} bytes, a window needs {self.length}")

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Inputs for ``model(**batch)``; the model shifts the labels itself."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        starts = torch.randint(len(self.text) - self.length + 1, (self.rows, 1), generator=generator)
        tokens = self.text[starts + torch.arange(self.length)].long().to(self.device)
        return {"input_ids": tokens, "labels": tokens}
