"""Linear maps along one axis, and the structure in them that makes them cheap to apply.

A map M has shape (n_large, n_small). Everything is built from four operations on a 2-D block `x`
whose rows are the axis (columns are whatever else there is, folded together):

    left(x)              M x              (n_small, m) -> (n_large, m)
    left_adjoint(g)      M^T g            (n_large, m) -> (n_small, m)
    accumulate(d, x, g)  d += dL/dM's factors, for G = dL/d(M x)
    block(a, b)          rows a..b of M, sharing its tensors: factors of a block are views

A gradient is itself a map of the same structure whose tensors hold the gradient of each factor.
Maps are plain objects over tensors (a factor may be a leaf parameter or any tensor).
"""

from .base import Map, is_learned
from .product import Kron, as_selection, kron, row_scale
from .structured import Dense, Identity, PrefixDiagonal, Selection, add_product_

__all__ = [
    "Dense",
    "Identity",
    "Kron",
    "Map",
    "PrefixDiagonal",
    "Selection",
    "add_product_",
    "as_selection",
    "is_learned",
    "kron",
    "row_scale",
]
