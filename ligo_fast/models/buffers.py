"""What a model has beside parameters: buffers in the dtypes of the small model's, and trained ones."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..architectures import Architecture
from ..errors import GrowthError


def cast_as(small: nn.Module, large: nn.Module) -> None:
    """Give the large model's parameters the small one's dtype, and each buffer that of its namesake.

    RoPE's frequencies stay in float32 in a bfloat16 model that was loaded with `from_pretrained`: rounded,
    they would turn distant positions by other angles. Buffers without a namesake stay as they were made.
    """
    dtype = next(small.parameters()).dtype
    for p in large.parameters():
        _cast(p, dtype)
    cast_buffers(small, large)


def cast_buffers(small: nn.Module, large: nn.Module) -> None:
    """Give each buffer the dtype of its namesake in the small model; those of any layer are namesakes."""
    known = {_any_layer(n): b.dtype for n, b in small.named_buffers()}
    for name, b in large.named_buffers():
        _cast(b, known.get(_any_layer(name), b.dtype))


def trained_buffers(architecture: Architecture, model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a checkpoint of the model has and its table does not call computed, by name."""
    found = {}
    for path, module in model.named_modules():
        for name, b in module.named_buffers(recurse=False):
            whole = f"{path}.{name}" if path else name
            if name not in module._non_persistent_buffers_set and not architecture.is_buffer(whole):
                found[whole] = b
    return found


def check_trained(architecture: Architecture, small: nn.Module, large: nn.Module, reorders: bool) -> None:
    """Raises GrowthError for a trained buffer that would have to grow: floating, of other shapes or layers.

    Args:
        reorders: layers change places even where their number stays.
    """
    ours, theirs = (trained_buffers(architecture, m) for m in (small, large))
    counts = [_layers(each) for each in (ours, theirs)]
    for name, b in ours.items():
        if not b.is_floating_point():
            continue
        row, there = _any_layer(name), theirs.get(name)
        if there is None or there.shape != b.shape:
            other = "nowhere" if there is None else f"{list(there.shape)}"
            why = f"{list(b.shape)} in the source, {other} in the target"
        elif counts[0][row] != counts[1][row] or (reorders and row != name):
            why = f"in {counts[0][row]} layers of the source, in {counts[1][row]} of the target"
        else:
            continue
        raise GrowthError(
            f"buffer {name}: {why}, and no method grows what is no parameter; if the model computes it anew, "
            f"list it in the buffers= of architecture {architecture.name!r}"
        )


def copy_trained(architecture: Architecture, small: nn.Module, large: nn.Module) -> None:
    """Write the small model's trained buffers into those of the large one that have their shapes.

    Raises:
        GrowthError: for one on the meta device; nothing was written.
    """
    theirs = trained_buffers(architecture, large)
    pairs = [(n, b, theirs[n]) for n, b in trained_buffers(architecture, small).items() if n in theirs]
    if missing := [n for n, b, _ in pairs if b.is_meta]:
        raise GrowthError(f"buffer {missing[0]} of the source is on the meta device: it has no values")
    with torch.no_grad():
        for _, b, out in pairs:
            if b.shape == out.shape:
                out.copy_(b)


def differing(small: nn.Module, large: nn.Module) -> list[str]:
    """Names of floating buffers that both models have in the same shape, with other values."""
    theirs = dict(large.named_buffers())
    return [
        n
        for n, b in small.named_buffers()
        if b.is_floating_point()
        and n in theirs
        and b.shape == theirs[n].shape
        and not torch.equal(b.double(), theirs[n].to(b.device).double())
    ]


def _layers(names: Collection[str]) -> dict[str, int]:
    """How often each row of a table would have these names."""
    rows = [_any_layer(n) for n in names]
    return {row: rows.count(row) for row in rows}


def _any_layer(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _cast(t: Tensor, dtype: torch.dtype) -> None:
    if t.is_floating_point() and dtype.is_floating_point:
        t.data = t.data.to(dtype)
