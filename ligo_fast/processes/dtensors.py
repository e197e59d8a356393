"""What a process has of tensors spread over several (DTensors): FSDP2's, tensor parallelism's, any."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GrowthError

Window = tuple[int, int]


def is_sharded(t: Any) -> bool:
    """Whether a tensor is a DTensor; without importing torch.distributed.tensor, which takes a while."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Any) -> Tensor:
    """This process's part of a DTensor, in the same memory; any other tensor as it is."""
    return t.to_local() if is_sharded(t) else t  # type: ignore[no-any-return]


def placed(t: Any) -> Any:
    """How a tensor is laid out over processes, and what is here; None for one that is not."""
    return (t.device_mesh, t.placements, local(t).shape) if is_sharded(t) else None


def windows(name: str, t: Any) -> list[Window]:
    """First and last + 1 of this process's part of a parameter, in each dimension.

    Raises:
        GrowthError: for a part of another shape than its placement says.
    """
    if not is_sharded(t):
        return [(0, n) for n in t.shape]
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(t.shape, t.device_mesh, t.placements)
    if tuple(shape) != tuple(local(t).shape):
        raise GrowthError(
            f"parameter {name}: this rank has {list(local(t).shape)} of {list(t.shape)}, its placement as "
            f"{t.placements} says {list(shape)}"
        )
    return [(a, a + n) for n, a in zip(shape, offset, strict=True)]


def share(t: Any, processes: int) -> float:
    """The weight of this process's gradient `t` in a sum over processes: copies count as their mean."""
    parts = 1
    if is_sharded(t):
        for size, p in zip(t.device_mesh.shape, t.placements, strict=True):
            summed = p.is_partial() and p.reduce_op == "sum"
            parts *= 1 if not (p.is_shard() or summed or type(p).__name__ == "_StridedShard") else size
    return parts / processes


def mesh_ranks(*models: nn.Module) -> list[int]:
    """The processes that the DTensors of these models are spread over; empty when there are none.

    Raises:
        GrowthError: for meshes of which none holds all.
    """
    parameters: list[Any] = [p for m in models for p in m.parameters() if is_sharded(p)]
    meshes = [set(mesh.mesh.flatten().tolist()) for mesh in {p.device_mesh for p in parameters}]
    largest = max(meshes, key=len, default=set())
    if stray := [m for m in meshes if not m <= largest]:
        raise GrowthError(f"parameters are spread over ranks {sorted(largest)} and over {sorted(stray[0])}")
    return sorted(largest)


def device_of(model: nn.Module) -> torch.device:
    """Where a model lives or, on the meta device and sharded, where it will."""
    p = next(model.parameters())
    if not (p.is_meta and is_sharded(p)):
        return p.device
    kind = str(p.device_mesh.device_type)  # type: ignore[attr-defined]
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def model_class(model: nn.Module) -> type:
    """A model's class; that of the model itself where fully_shard has put one in front."""
    cls = type(model)
    while cls.__bases__[0].__module__.startswith("torch.distributed"):
        cls = cls.__bases__[1]
    return cls


def gathering(model: nn.Module) -> list[Any]:
    """The modules of a model that FSDP gathers parameters for."""
    module = sys.modules.get("torch.distributed.fsdp")
    return [] if module is None else [m for m in model.modules() if isinstance(m, module.FSDPModule)]


def reshard(model: nn.Module) -> None:
    """Free what FSDP has gathered, so that the parameters are their parts again."""
    for m in gathering(model):
        m.reshard()
