"""Whether tensors still hold what they held: autograd's check of the tensors it saves, and a little more."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from .processes.dtensors import local

# Those that were not empty. Other threads make optimizers' steps: adding, discarding and copying a set is one
# step of the interpreter each, and a WeakSet's loop would fail where one of them adds to it.
_kept: set[weakref.ref[Snapshot]] = set()
_steps = [0]


class Snapshot:
    """Remembers tensors without their values and without keeping them alive.

    A tensor has changed when it is another object, has other memory or another version (every in-place
    operation counts it up), or when an optimizer that has it made a step: fused kernels count nothing. Of a
    parameter that is a part of a larger buffer nothing is known, as a write to the buffer may count
    elsewhere. As in autograd, a write through `.data` or by foreign code goes unseen.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        tensors = list(tensors)
        tensors = tensors if all(map(_counts, tensors)) else []
        self._order = [id(t) for t in tensors]
        self._seen = {id(t): _mark(t) for t in tensors}
        if tensors:
            _watch()
            _kept.add(weakref.ref(self, _kept.discard))

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are the tensors of the snapshot, in this order, unchanged; never for an empty one."""
        tensors = list(tensors)
        return self._order == [id(t) for t in tensors] and self.includes(tensors)

    def includes(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are among the tensors of the snapshot, unchanged; never for none at all."""
        tensors = list(tensors)
        return bool(tensors) and all(map(self._unchanged, tensors))

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """From now on these have changed."""
        for t in tensors:
            self._seen.pop(id(t), None)

    def _unchanged(self, t: Tensor) -> bool:
        if (mark := self._seen.get(id(t))) is None:
            return False
        (ref, storage, version), own = mark, local(t)
        return bool(ref() is t and storage.cdata == own.untyped_storage()._cdata and version == own._version)

    def __reduce__(self) -> tuple[type[Snapshot], tuple[()]]:
        return Snapshot, ()  # a copy is of other tensors: it knows nothing


def _counts(t: Tensor) -> bool:
    """Whether every write to a tensor counts its version up: not in inference mode, nor through a buffer."""
    if t.is_inference():
        return False
    # other views count together with what they are views of; what FSDP pads its parts with is nobody's
    return type(t) is not nn.Parameter or t.untyped_storage().nbytes() == t.nbytes


def _mark(t: Tensor) -> tuple[weakref.ref[Tensor], Any, int]:
    own = local(t)
    return weakref.ref(t), StorageWeakRef(own.untyped_storage()), own._version


@cache
def _watch() -> None:
    """Have optimizers' steps seen, from the first time that there is something to see."""
    register_optimizer_step_post_hook(_stepped)


def steps() -> int:
    """How many steps optimizers made since this was first asked; of a GrowthOptimizer its inner one."""
    _watch()
    return _steps[0]


def _stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if getattr(optimizer, "leaves_grown_weights", False):
        return
    _steps[0] += 1
    for ref in _kept.copy():
        if (snapshot := ref()) is not None:
            for group in optimizer.param_groups:
                snapshot.forget(group["params"])
