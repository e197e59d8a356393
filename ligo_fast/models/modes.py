"""Modes that a caller sets for its own models: kept out of growth, or set for a while and put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn

_NOTHING = contextlib.nullcontext()


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products in the dtypes that the code gives them; it costs next to nothing where autocast is off."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):  # it raises for meta
        return _NOTHING
    return torch.autocast(device.type, enabled=False)


def no_inference() -> AbstractContextManager[object]:
    """Tensors that live on after the call can be written outside inference mode; gradients are on inside."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else _NOTHING


@contextlib.contextmanager
def no_modes(device: torch.device | None = None) -> Iterator[None]:
    """Neither of the two, on the host and on a device; and tensors without a device are the host's."""
    host = torch.device("cpu")
    with no_autocast(host), no_autocast(device or host), no_inference(), host:
        yield


@contextlib.contextmanager
def training(model: nn.Module, mode: bool) -> Iterator[None]:
    """A model in train or eval mode; afterwards every module is in the mode that it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.train(mode)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was
