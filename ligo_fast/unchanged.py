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
        self._seen = [] if any(t.is_inference() for t in tensors) else [_mark(t) for t in tensors]

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are the tensors of the snapshot, in this order, unchanged; never for an empty one."""
        tensors = list(tensors)
        return 0 < len(self._seen) == len(tensors) and all(
            ref() is t and storage.cdata == own.untyped_storage()._cdata and version == own._version
            for (ref, storage, version), t, own in zip(self._seen, tensors, map(local, tensors), strict=True)
        )

    def __reduce__(self) -> tuple[type[Snapshot], tuple[()]]:
        return Snapshot, ()  # a copy is of other tensors: it knows nothing


def _mark(t: Tensor) -> tuple[weakref.ref[Tensor], Any, int]:
    own = local(t)
    return weakref.ref(t), StorageWeakRef(own.untyped_storage()), own._version
