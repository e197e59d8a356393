"""Kernels on tables that stay, launched again and again at the cost of the launches alone.

For every launch Triton looks at every argument to find what it compiled for such, which takes several times
as long as to tell the driver. Here nothing that it looks at changes, so that it does so once.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from .table import upload

# whose compiled kernels are launched as tests/test_launch.py has it; others look every time
RELEASES = ("3.6", "3.7")
KNOWN = triton.__version__.startswith(tuple(f"{r}." for r in RELEASES))


class Launch:
    """One launch of a plan: kernel(pointers, *tables, **options) on a grid in one dimension.

    Args:
        tables: rows of numbers, as many as the kernel takes before its work; work: what each program does,
            from `table.tiles`.
        options: the kernel's constants and Triton's options.
    """

    def __init__(
        self,
        kernel: Any,
        device: torch.device,
        tables: Sequence[Sequence[Sequence[int]]],
        work: np.ndarray,
        options: dict[str, object],
    ) -> None:
        self.kernel, self.options, self.grid = kernel, options, (len(work),)
        self.tables = [*(upload(rows, device) for rows in tables), upload(work, device, torch.int32)]

    def __call__(self, pointers: Tensor) -> Any:
        """Launch on the current stream of the current device, that of `pointers`; gives Triton's kernel."""
        return self.kernel[self.grid](pointers, *self.tables, **self.options)

    def again(self, compiled: Any, pointers: Tensor, stream: int) -> Callable[[], object]:
        """The same, later, for as long as the tensors are kept."""
        constants = (self.options[name] for name in self.kernel.arg_names[1 + len(self.tables) :])
        launcher = compiled.function, compiled.packed_metadata, None, None, None
        # as numbers: of a tensor the launcher asks the driver each time whether it is on the device
        arguments = pointers.data_ptr(), *(t.data_ptr() for t in self.tables), *constants
        return partial(compiled.run, *self.grid, 1, 1, stream, *launcher, *arguments)


class Launches(list[Launch]):
    """The launches of one call, in order.

    Args:
        memory: bytes of workspace that they need.
        starts: where in it the first slots begin of those whose tensors are in the workspace.

    Attributes:
        leaves: the call after which the workspace holds what `short` finds there: this one, or one before.
        short: the launches that are left of this call where the workspace holds that.
    """

    def __init__(self, memory: int, starts: Sequence[int]) -> None:
        super().__init__()
        self.memory, self._starts = memory, starts
        self.leaves: Launches | None = None
        self.short: Launches | None = None
        self._base, self._places = 0, array("q", starts)
        self._again: Sequence[Callable[[], object]] = ()
        self._made_for: tuple[object, ...] = ()

    def places(self, base: int) -> array[int]:
        """The addresses of those slots in the workspace that begins at `base`."""
        if base != self._base:
            self._base, self._places = base, array("q", [base + start for start in self._starts])
        return self._places

    def __call__(self, pointers: Tensor) -> None:
        """Launch all on the current stream of the current device, which is that of `pointers`."""
        compiles = self._again or (self and all(isinstance(each.kernel, triton.JITFunction) for each in self))
        if not KNOWN or not compiles or _is_watched():
            for launch in self:
                launch(pointers)
            return
        stream = driver.active.get_current_stream(pointers.device.index)
        now = pointers.data_ptr(), stream
        if now == self._made_for:
            for again in self._again:
                again()
            return
        self._again = [launch.again(launch(pointers), pointers, stream) for launch in self]
        self._made_for = now


def _is_watched() -> bool:
    """Whether somebody, a profiler say, asked Triton to be told of launches."""
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return any(getattr(hook, "calls", hook) for hook in hooks)
