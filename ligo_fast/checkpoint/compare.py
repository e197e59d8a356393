"""`certify` for two checkpoint folders: both models are loaded, in float32, and run on sample input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import GrowthError
from ..exact.certificate import Certificate, certify
from ..growth import hash_maps, record
from ..operator import GrowthOperator
from .folder import Checkpoint, open_checkpoint
from .header import read_json
from .operators import load_operator
from .skeleton import HEADED


def certify_folders(
    small: str | Path,
    large: str | Path,
    operator: str | Path | None = None,
    rows: int = 2,
    length: int = 32,
    seed: int = 0,
) -> tuple[Certificate, list[str]]:
    """The certificate of a grown folder, and notes on what could not be checked.

    Args:
        small, large: checkpoint folders; growth.json in `large` says how it was grown.
        operator: the file of a learned operator, without which its rules are not checked.
        rows, length, seed: of the random tokens (or images) that both models run on.

    Raises:
        GrowthError: for folders that are no checkpoints or do not load.
    """
    folders = open_checkpoint(small), open_checkpoint(large)
    models = [_load(checkpoint) for checkpoint in folders]
    notes = _recall(models[0], models[1], folders[0], folders[1].folder / "growth.json", operator)
    dtypes = {e.dtype for f in folders for e in f.entries.values() if e.dtype.is_floating_point}
    stored = max(dtypes, key=lambda d: torch.finfo(d).eps, default=torch.float32)
    batch = _sample(models[0], rows, length, seed)
    return certify(models[0], models[1], batch, stored=stored), notes


def _load(checkpoint: Checkpoint) -> nn.Module:
    import transformers

    names = checkpoint.config.get("architectures") or [None]
    cls = getattr(transformers, str(names[0]), None)
    if cls is None:
        raise GrowthError(
            f"{checkpoint.folder / 'config.json'}: architectures: transformers has no {names[0]!r}"
        )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model: nn.Module = cls.from_pretrained(
            checkpoint.folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
        )
    except Exception as error:  # whatever the library makes of a folder
        raise GrowthError(f"{checkpoint.folder}: transformers does not load it: {error}") from error
    return model.eval()


def _recall(
    small: nn.Module, large: nn.Module, source: Checkpoint, file: Path, operator: str | Path | None
) -> list[str]:
    """Make the growth known to `certify`, as growth.json tells it; what could not be known, in words."""
    if not file.is_file():
        return [f"no {file.name}: only outputs are compared, no rules"]
    told = read_json(file.read_bytes(), str(file))
    try:
        if operator is not None:
            op = load_operator(operator, small, large)
        else:
            op = GrowthOperator(small, large, told["method"], seed=told["seed"], **told["options"])
        same = hash_maps(op.growth) == told["maps_sha256"]
        shards = {p.name for p in source.shards}
        listed = set(told["source"]["sha256"]) - {"config.json"}
    except (KeyError, TypeError) as error:
        raise GrowthError(f"{file}: not what ligo-fast writes: {json.dumps(str(error))}") from error
    if not same:
        why = "give the operator's file" if "operator" in told else "they are not those of this version"
        if operator is not None:
            why = f"{operator} is not the operator that was used"
        return [f"the maps are not those of {file.name} ({why}): only outputs are compared, no rules"]
    record(large, op.growth, small)
    return [] if shards == listed else [f"{file.name} names another source: {', '.join(sorted(listed))}"]


def _sample(model: nn.Module, rows: int, length: int, seed: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    config: Any = model.config
    if not hasattr(config, "vocab_size"):
        size = config.image_size if isinstance(config.image_size, tuple | list) else [config.image_size] * 2
        shape = (rows, config.num_channels, *size)
        return {"pixel_values": torch.randn(shape, dtype=torch.float32, generator=rng)}
    longest = getattr(config, "max_position_embeddings", length) or length
    pad = getattr(config, "pad_token_id", None)
    length = min(length, longest - (0 if pad is None else pad + 1))  # RoBERTa counts from behind the padding
    first = 0 if pad is None or pad + 1 >= config.vocab_size else pad + 1
    ids = torch.randint(first, config.vocab_size, (rows, length), generator=rng)
    return {"input_ids": ids, **({"labels": ids} if HEADED.search(type(model).__name__) else {})}
