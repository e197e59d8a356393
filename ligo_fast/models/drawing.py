"""A constructor's random numbers: those it draws after torch.manual_seed, without others noticing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")
_global = threading.RLock()  # on torch's own generators, which all threads share


def drawn(make: Callable[[], T], seed: int, fill: bool = True) -> T:
    """What `make` returns, its random numbers following from `seed`.

    They come from generators of this call. Where `make` calls something random that takes no generator it
    starts over with torch's global ones, in one thread at a time; they are put back afterwards.

    Args:
        fill: False leaves parameters as they were allocated where they would be filled with random numbers.
    """
    for mode in (_Numbers(None), _Numbers(seed)) if not fill else (_Numbers(seed),):
        try:
            with mode:
                return make()
        except _OtherNumbers:
            continue
    with _global, torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class _OtherNumbers(BaseException):
    """Random numbers are drawn that are not for a parameter, or without a generator."""


class _Numbers(TorchDispatchMode):
    """Inside, random numbers come from own generators, or, without a seed, parameters are not filled."""

    def __init__(self, seed: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed, self.generators = seed, dict[torch.device, torch.Generator]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if self.seed is None:
            if func._schema.is_mutable and isinstance(args[0], nn.Parameter):
                return args[0]
            raise _OtherNumbers
        device = next((a.device for a in args if isinstance(a, Tensor)), kwargs.get("device"))
        device = torch.device("cpu") if device is None else device
        if device.type == "meta" or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if not any(a.name == "generator" for a in func._schema.arguments):
            # of randn and the like there is another form, which takes one
            name = "generator" if func._overloadname == "default" else f"{func._overloadname}_generator"
            func = getattr(func.overloadpacket, name, None)
            if func is None:
                raise _OtherNumbers
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return func(*args, **{**kwargs, "generator": self.generators[device]})
