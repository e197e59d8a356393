"""What this process has of two models, as pieces of work see it."""

from __future__ import annotations

from torch import Tensor, nn

from .fetch import Fetch
from .models.owners import Tensors
from .plan import Piece
from .processes.dtensors import local, share


class Views:
    """What this process has of two models, or of tensors by their names, as pieces see them by layer."""

    def __init__(self, small: Tensors, large: Tensors, fetched: Fetch | None = None) -> None:
        # looked up once; tied parameters under each of their names
        self.small, self.large = (
            dict(t.named_parameters(remove_duplicate=False)) if isinstance(t, nn.Module) else t
            for t in (small, large)
        )
        self.fetched = fetched

    def sources(self, piece: Piece) -> list[Tensor]:
        tensors: dict[str, Tensor] = {n: self.small[n] for n in piece.small}
        if self.fetched is not None:
            tensors = self.fetched.get(tensors)
        return [piece.small_slot.of(t) for t in map(tensors.__getitem__, piece.small)]

    def outs(self, piece: Piece) -> list[Tensor]:
        return [piece.large_slot.of(local(self.large[n])) for n in piece.large]

    def grads(self, piece: Piece) -> list[Tensor | None]:
        grads = [self.large[n].grad for n in piece.large]
        # a gradient of its own strides (channels_last) may be no matrix without a copy
        return [None if g is None else piece.large_slot.of(_in_rows(local(g))) for g in grads]

    def weight(self, piece: Piece, processes: int) -> float:
        """Of this process's gradients of a piece in the sum over processes."""
        first = self.large[piece.large[0]]
        return share(first if first.grad is None else first.grad, processes)


def _in_rows(t: Tensor) -> Tensor:
    return t.contiguous() if t.dim() > 2 else t
