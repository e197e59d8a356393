"""NaN and infinity in the tensors of a safetensors file, counted as its bytes go by for another purpose.

Nothing here needs torch. A file that is no such thing has no tensors here: who reads it says what is wrong.
"""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

KEPT = 8  # bytes of the block before that a value may begin in
MAX_HEADER = 100_000_000  # bytes, as in the library
# bytes of a value; the bits of its exponent, all of which are set in NaN and infinity
KINDS = {"F16": (2, 0x7C00), "BF16": (2, 0x7F80), "F32": (4, 0x7F800000), "F64": (8, 0x7FF << 52)}
Span = tuple[int, int, int, int, str]  # first byte, the one after the last, bytes of a value, exponent, name


class NotFinite:
    """How many values of each tensor are NaN or infinite; `found` has those that have any."""

    def __init__(self, descriptor: int) -> None:
        self.found = Counter[str]()
        self._tensors, self._done, self._count = _tensors(descriptor), 0, counting()

    def look(self, buffer: memoryview, at: int, n: int) -> None:
        """The file's bytes `at` to `at + n` are in `buffer` after `KEPT` of those before them."""
        while self._done < len(self._tensors):
            start, stop, size, exponent, name = self._tensors[self._done]
            if start >= at + n:
                return
            first, last = max(0, (at - start) // size), (min(stop, at + n) - start) // size
            if last > first:  # not so of tensors that overlap, which is an error elsewhere
                where = KEPT + start + first * size - at
                if bad := self._count(buffer, where, last - first, size, exponent):
                    self.found[name] += bad
            if stop > at + n:
                return
            self._done += 1


def _tensors(descriptor: int) -> list[Span]:
    """Those of floating point, in the order of their bytes."""
    try:
        size = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        header = json.loads(os.pread(descriptor, size, 8)) if size <= MAX_HEADER else {}
        entries = [(n, e["dtype"], *e["data_offsets"]) for n, e in header.items() if n != "__metadata__"]
        known = [(n, *KINDS[kind], start, stop) for n, kind, start, stop in entries if kind in KINDS]
        return sorted((8 + size + a, 8 + size + b, *kind, n) for n, *kind, a, b in known if 0 <= a <= b)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


@functools.cache
def counting() -> Callable[[Any, int, int, int, int], int]:
    """Counts values in a buffer: from which byte on, how many, bytes of each, exponent."""
    try:
        if os.environ.get("LIGO_FAST_NO_EXT") != "1":
            compiled: Callable[[Any, int, int, int, int], int] = import_module("ligo_fast._cpu").not_finite
            return compiled
    except (ImportError, AttributeError):  # not built, or from other sources
        pass
    return plain


def plain(buffer: Any, first: int, count: int, size: int, exponent: int) -> int:
    """The same with numpy, a few times slower."""
    import numpy as np

    values = np.frombuffer(buffer, f"<u{size}", count, first)
    bits = values.dtype.type(exponent)
    return int(np.count_nonzero((values & bits) == bits))
