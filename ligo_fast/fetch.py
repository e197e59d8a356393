"""The small model's weights brought to where the large one is grown, one family at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import GrowthError
from .processes.dtensors import is_sharded

if TYPE_CHECKING:
    from .checkpoint.weights import WeightFiles


class Fetch:
    """What was fetched is freed when the next family is asked for, or with this object."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The whole of each tensor, by its name in the small model, on the device of the large one."""
        if self._kept.keys() != tensors.keys():  # blocks of one fused parameter come one after the other
            self._kept = {}  # freed first
            self._kept = {name: self.whole(name, t.detach()) for name, t in tensors.items()}
        return self._kept

    def whole(self, name: str, t: Tensor) -> Tensor:
        """One tensor."""
        raise NotImplementedError


class FromDevice(Fetch):
    """A small model in the memory of the host; a GPU copies a family from pinned memory by itself."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def whole(self, name: str, t: Tensor) -> Tensor:
        staged = t.pin_memory() if self.device.type == "cuda" and not t.is_pinned() else t
        return staged.to(self.device, non_blocking=True)


class FromFiles(Fetch):
    """A small model on the meta device, whose weights are in a checkpoint folder."""

    def __init__(self, files: WeightFiles, device: torch.device) -> None:
        super().__init__()
        self.files, self.device = files, device

    def whole(self, name: str, t: Tensor) -> Tensor:
        return self.files.read(name, t.dtype, self.device)


def find_weights(folder: str | Path, small: nn.Module) -> WeightFiles:
    """The weights of a small model on the meta device, in a checkpoint folder.

    Raises:
        GrowthError: for a model that is somewhere else, or not the one in the folder.
    """
    from .checkpoint.weights import weight_files

    if odd := [n for n, p in small.named_parameters() if not p.is_meta or is_sharded(p)]:
        raise GrowthError(
            f"source={str(folder)!r} is for a small model on the meta device; its {odd[0]} has weights"
        )
    return weight_files(folder, small)
