"""What an operator found when it was made, and whether its two models are still so."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .errors import GrowthError
from .models.owners import Owners
from .native.layouts import is_nowhere
from .plan import check_as_made, check_strides
from .processes.dtensors import gathering, local, placed
from .processes.sharded import Part, part_of
from .views import Views

if TYPE_CHECKING:
    from .operator import GrowthOperator

REQUIRES_GRAD = attrgetter("requires_grad")


class Bound:
    """Where an operator's parameters are, how they are laid out, and this process's part of each piece."""

    def __init__(self, op: GrowthOperator) -> None:
        self._op = weakref.ref(op)  # a cycle would keep both models until Python's collector runs

    def look(self) -> None:
        """Look at the models now: later they must be laid out the same."""
        assert self.placed.keys() and self.parts is not None and self.owners

    @property
    def op(self) -> GrowthOperator:
        """The operator, which owns all this."""
        op = self._op()
        assert op is not None
        return op

    @cached_property
    def placed(self) -> dict[str, Any]:
        """How each parameter of the large model is laid out over processes."""
        return {n: placed(p) for n, p in self._large().items()}

    @cached_property
    def is_sharded(self) -> bool:
        """Whether any parameter of the large model is spread over processes."""
        return any(self.placed.values())

    @cached_property
    def parts(self) -> list[Part]:
        """What this process does of each piece."""
        parameters = self._large()
        return [part_of(piece, parameters) for piece in self.op.pieces]

    @cached_property
    def gathering(self) -> list[Any]:
        """The large model's modules that hold gathered parameters at times."""
        return gathering(self.op.large)

    @cached_property
    def owners(self) -> tuple[Owners, Owners]:
        """Where the parameters of both models are; a walk over their modules takes milliseconds."""
        names = (
            [n for n, _ in m.named_parameters(remove_duplicate=False)] for m in (self.op.small, self.op.large)
        )
        return Owners(self.op.small, next(names)), Owners(self.op.large, next(names))

    def _large(self) -> dict[str, nn.Parameter]:
        return dict(self.op.large.named_parameters(remove_duplicate=False))

    def views(self) -> Views:
        """What is there of both models now."""
        small, large = (dict(zip(o.names, o.now(), strict=True)) for o in self.owners)
        return Views(small, large, self.op.fetch())

    def factors(self) -> list[nn.Parameter]:
        """What is learned: `op.parameters()` that are not frozen, without its walk over modules."""
        return list(filter(REQUIRES_GRAD, self.op._parameters.values()))  # type: ignore[arg-type]

    def check_unchanged(self) -> None:
        """Raises GrowthError for a parameter that is gone, or laid out otherwise."""
        op = self.op
        if op.files is not None:
            op.files.check()
        small, large = (dict(zip(o.names, o.now(), strict=True)) for o in self.owners)
        for piece in op.pieces:
            for model, names, there in (("small", piece.small, small), ("large", piece.large, large)):
                if gone := [n for n in names if there.get(n) is None]:
                    raise GrowthError(f"parameter {gone[0]} of the {model} model is gone: wrapped or pruned?")
            for name in piece.large:
                check_as_made(piece, name, large[name], op._large_dtype, op.device)
                if placed(large[name]) != self.placed[name]:
                    raise GrowthError(
                        f"parameter {name} is now {_layout(placed(large[name]))}; the operator was made for "
                        f"{_layout(self.placed[name])}"
                    )
        check_strides(op.pieces, small, large)

    def unreadable(self) -> str:
        """Which gradient cannot be read; empty when all can."""
        owners = self.owners[1]
        named = zip(owners.names, owners.now(), strict=True)
        grads = {n: p.grad for n, p in named if p is not None and p.grad is not None}
        odd = next((n for n, g in grads.items() if is_nowhere(local(g))), "")
        return (
            odd and f"the gradient of parameter {odd} cannot be read: it is sparse, or its memory was freed"
        )

    def involved(self) -> Iterator[Tensor]:
        """All that the grown weights depend on, and the grown weights."""
        for owners in self.owners:
            yield from (p for p in owners.now() if p is not None)
        for part in self.parts:
            for m in part.whole.maps():
                yield from m.factors().values()


def _layout(placement: Any) -> str:
    if placement is None:
        return "not sharded"
    mesh, placements, shape = placement
    return f"{list(shape)} of it on this rank, placed as {placements} over {mesh}"
