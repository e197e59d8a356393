"""Whether tensors still hold what they held: the check that autograd makes of the tensors it saves."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .dtensors import local


class Snapshot:
    """Remembers tensors without their values and without keeping them alive.

    A tensor has changed when it is another object, has other memory or another version (every in-place
    operation counts it up). As in autograd, a write through `.data` or by foreign code goes unseen.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        tensors = list(tensors)
        # tensors made in inference mode count no versions: nothing can be said of them
        tensors = [] if any(t.is_inference() for t in tensors) else tensors
        self._order = [id(t) for t in tensors]
        self._seen = {id(t): _mark(t) for t in tensors}

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are the tensors of the snapshot, in this order, unchanged; never for an empty one."""
        tensors = list(tensors)
        return self._order == [id(t) for t in tensors] and self.includes(tensors)

    def includes(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are among the tensors of the snapshot, unchanged; never for none at all."""
        tensors = list(tensors)
        return bool(tensors) and all(map(self._unchanged, tensors))

    def _unchanged(self, t: Tensor) -> bool:
        if (mark := self._seen.get(id(t))) is None:
            return False
        (ref, storage, version), own = mark, local(t)
        return bool(ref() is t and storage.cdata == own.untyped_storage()._cdata and version == own._version)

    def __reduce__(self) -> tuple[type[Snapshot], tuple[()]]:
        return Snapshot, ()  # a copy is of other tensors: it knows nothing


def _mark(t: Tensor) -> tuple[weakref.ref[Tensor], Any, int]:
    own = local(t)
    return weakref.ref(t), StorageWeakRef(own.untyped_storage()), own._version
