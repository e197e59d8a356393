"""A growth operator as a file: learned on one machine, applied on another.

The file is safetensors: the learned factors by name, and in its metadata what the fixed maps follow from
(method, options, seed, sizes), as JSON under "ligo_fast". Nothing of the two models is in it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GrowthError
from ..operator import GrowthOperator
from .header import read_header, read_json
from .swap import sync

FORMAT = 1


@dataclass(frozen=True)
class Saved:
    """What a file of an operator says.

    Attributes:
        method, seed, noise, options: arguments of `GrowthOperator`.
        architecture: the name of the models' table.
        small, large: sizes by axis.
        config: what the large model's config must say, under the config's own names.
        factors: the learned tensors.
    """

    file: Path
    method: str
    seed: int
    noise: float
    options: dict[str, Any]
    architecture: str
    small: dict[str, int]
    large: dict[str, int]
    config: dict[str, Any]
    factors: dict[str, Tensor]


def save_operator(op: GrowthOperator, path: str | Path) -> None:
    """Write an operator to a safetensors file, replacing what is there.

    Raises:
        GrowthError: for options that JSON does not have, or a file that cannot be written.
    """
    from safetensors.torch import save

    path, growth = Path(path), op.growth
    architecture = growth.architecture
    sizes = [architecture.read_sizes(m) for m in (op.small, op.large)]
    config: dict[str, Any] = {s.name: sizes[1][axis] for axis, s in architecture.sizes.items() if s.name}
    if architecture.eps:
        config[architecture.eps] = architecture.read_eps(op.large)
    content = {
        "format": FORMAT,
        "method": growth.method,
        "seed": op.seed,
        "noise": growth.noise,
        "options": op.options,
        "architecture": architecture.name,
        "small": sizes[0],
        "large": sizes[1],
        "config": config,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        metadata = {"format": "pt", "ligo_fast": json.dumps(content)}
        factors = {n: p.detach().cpu().contiguous() for n, p in op.named_parameters()}
        temporary.write_bytes(save(factors, metadata))
        sync(temporary)
        os.replace(temporary, path)
    except TypeError as error:
        raise GrowthError(f"{path}: the operator's options cannot be saved: {error}") from error
    except OSError as error:
        raise GrowthError(f"{path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_operator(path: str | Path) -> Saved:
    """The content of an operator's file.

    Raises:
        GrowthError: for a file that is none.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        read_header(path)  # says which field is wrong
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("ligo_fast")
            factors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise GrowthError(f"{path}: {error.strerror}") from error
    except SafetensorError as error:
        raise GrowthError(f"{path}: {error}") from error
    if text is None:
        raise GrowthError(f"{path}: its metadata has no 'ligo_fast': not a growth operator")
    content = read_json(text.encode(), f"{path}: metadata")
    fields = {
        "method": str, "seed": int, "noise": int | float, "options": dict, "architecture": str,
        "small": dict, "large": dict, "config": dict,
    }  # fmt: skip
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise GrowthError(f"{path}: metadata: this version reads operators of format {FORMAT}")
    for name, kind in fields.items():
        if not isinstance(content.get(name), kind):
            raise GrowthError(f"{path}: metadata: {name}: {content.get(name)!r}")
    return Saved(path, factors=factors, **{n: content[n] for n in fields})


def load_operator(
    path: str | Path, small: nn.Module, large: nn.Module, source: str | Path | None = None
) -> GrowthOperator:
    """The operator that `save_operator` wrote, for a pair of models of the same sizes.

    Args:
        path: the file.
        small, large: as for `GrowthOperator`; `large` may be on the meta device, and so may both. Their
            weights may be others than those the operator was learned on.
        source: as for `GrowthOperator`: a folder with the weights of a `small` on the meta device.

    Raises:
        GrowthError: for a file that is no operator, or models of another architecture or other sizes.
    """
    return make_operator(read_operator(path), small, large, source)


def make_operator(
    saved: Saved, small: nn.Module, large: nn.Module, source: str | Path | None = None
) -> GrowthOperator:
    """See `load_operator`."""
    from ..architectures import architecture_of

    architecture = architecture_of(small)
    if architecture.name != saved.architecture:
        raise GrowthError(
            f"{saved.file}: an operator for {saved.architecture!r}, the source is {architecture.name!r}"
        )
    for which, model, want in (("source", small, saved.small), ("target", large, saved.large)):
        for axis, n in architecture.read_sizes(model).items():
            if want.get(axis) != n:
                raise GrowthError(
                    f"{saved.file}: axis {axis}: the operator was made for a {which} of {want.get(axis)}, "
                    f"this one has {n}"
                )
    made_with = {"seed": saved.seed, "noise": saved.noise, **saved.options}
    op = GrowthOperator(small, large, saved.method, source=source, **made_with)
    own = dict(op.named_parameters())
    if odd := sorted(own.keys() ^ saved.factors.keys()):
        raise GrowthError(f"{saved.file}: factor {odd[0]}: in only one of the file and the operator")
    with torch.no_grad():
        for name, p in own.items():
            if p.shape != saved.factors[name].shape:
                raise GrowthError(
                    f"{saved.file}: factor {name}: {list(saved.factors[name].shape)}, "
                    f"the models need {list(p.shape)}"
                )
            if not bool(torch.isfinite(saved.factors[name]).all()):
                raise GrowthError(f"{saved.file}: factor {name}: values that are NaN or infinite")
            p.copy_(saved.factors[name])
    return op
