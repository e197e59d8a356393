"""What every map can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def is_learned(factor: Tensor) -> bool:
    """Whether a factor is a parameter, or a part of one."""
    return isinstance(factor, torch.nn.Parameter) or isinstance(factor._base, torch.nn.Parameter)


class Map:
    """A linear map of shape (n_large, n_small) along one axis."""

    shape: tuple[int, int]
    grain = 1  # block boundaries must be multiples of this
    kept = 0  # how many leading rows are those of the identity
    selected = 0  # how many leading rows take one unit each; the others mix
    fixed = 0  # how many rows have no factor
    least = 0  # the smallest index; -1 where rows are for the caller to leave as they are
    here = True  # whether this process computes its products
    tensors: tuple[str, ...] = ()  # names of the tensors that are factors

    def factors(self) -> dict[str, Tensor]:
        """The tensors this map is made of, by name; those that are absent (None) are left out."""
        return {name: t for name in self.tensors if (t := getattr(self, name)) is not None}

    def replace(self, factors: Mapping[str, Tensor]) -> Map:
        """The same structure over other tensors; a factor that is not given becomes absent."""
        raise NotImplementedError

    def left(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """M x for x of shape (n_small, m), written into `out` (n_large, m) if given."""
        raise NotImplementedError

    def left_adjoint(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        """M^T g for g of shape (n_large, m), written into `out` (n_small, m) if given."""
        raise NotImplementedError

    def accumulate(self, grad: Map, x: Tensor, g: Tensor) -> None:
        """Add d<g, M x>/d(factors) to the tensors of `grad`."""

    def block(self, start: int, stop: int) -> Map:
        """Rows start..stop of the map, over views of the same tensors."""
        raise NotImplementedError

    def cuts(self) -> list[int]:
        """Row numbers at which the structure changes, both ends included."""
        return [0, self.shape[0]]

    def flops(self, m: int) -> int:
        """Multiplications and additions of `left` on m columns."""
        return 0

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The whole matrix; for references, certificates and plots."""
        device = next((t.device for t in vars(self).values() if isinstance(t, Tensor)), "cpu")
        cast = self.replace({k: t.detach().to(dtype) for k, t in self.factors().items()})
        return cast.left(torch.eye(self.shape[1], dtype=dtype, device=device))

    def transform(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Apply `fn` (a move or a cast) to the tensors that are not parameters."""
        for name, value in vars(self).items():
            if isinstance(value, Map):
                value.transform(fn)
            elif isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
                setattr(self, name, fn(value))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]})"
