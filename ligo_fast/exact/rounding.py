"""How far the rounding of stored weights moves a model's outputs: measured, in float32.

A model in half precision computes with errors of its own, which hide a change of the function as large as
they are. So its weights are taken as they are and used in float32, where all that is left is the rounding of
the weights themselves; and that is measured, too, by rounding anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Call = Callable[..., Any]


def coarsest(*models: nn.Module) -> torch.dtype:
    """The dtype with the largest rounding error among the parameters of some models."""
    dtypes = {p.dtype for m in models for p in m.parameters() if p.dtype.is_floating_point}
    return max(dtypes, key=lambda d: torch.finfo(d).eps, default=torch.float32)


def is_half(dtype: torch.dtype) -> bool:
    """Whether a dtype rounds more coarsely than float32."""
    return torch.finfo(dtype).eps > torch.finfo(torch.float32).eps


def in_float32(model: nn.Module, rounded_as: torch.dtype | None = None) -> Call:
    """A model as a function that computes with its weights in float32; floating arguments are cast, too.

    Args:
        rounded_as: move each weight by a random relative error up to that of a rounding to this dtype.
    """
    state = {n: t.detach().float() for n, t in _floating(model)}
    if rounded_as is not None:
        eps, rng = torch.finfo(rounded_as).eps, dict[torch.device, torch.Generator]()
        for name, p in model.named_parameters():
            if name in state:
                generator = rng.setdefault(p.device, torch.Generator(p.device).manual_seed(0))
                error = torch.rand(p.shape, generator=generator, device=p.device).sub_(0.5).mul_(eps)
                state[name] = state[name].addcmul(state[name], error)

    def call(*args: Any, **kwargs: Any) -> Any:
        with _attention_in_float32(model):
            return functional_call(model, state, _cast(args), _cast(kwargs))

    return call


def _floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.is_floating_point():
            yield name, t


def _cast(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.float() if values.is_floating_point() else values
    if isinstance(values, Mapping):
        return {k: _cast(v) for k, v in values.items()}
    return tuple(map(_cast, values)) if isinstance(values, list | tuple) else values


@contextlib.contextmanager
def _attention_in_float32(model: nn.Module) -> Iterator[None]:
    """FlashAttention's kernels know half precision only; torch's own attention is the same function."""
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "_attn_implementation", None)
    if not isinstance(kind, str) or "flash" not in kind:
        yield
        return
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = kind
