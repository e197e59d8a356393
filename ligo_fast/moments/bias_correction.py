"""How many steps Adam's averages may count when they lie beside new entries, whose averages are zero.

Adam divides its averages by 1 - beta^t with one step count t for a whole tensor, which cannot be right for
old and new entries alike. Under a constant gradient a new entry's k-th step is, with the count of the old,

    h(k) = (1 - beta1^k) / sqrt(1 - beta2^k)     learning rates:

3.2 at first and up to 6.5 with betas (0.9, 0.999). With a count of zero it is 1, and the old averages, which
count as none, are lost or far too large. In between, averages that count as s steps (divided by their own
correction, times that of s) are right for old entries, and a new one's k-th step is h(k) / h(k + s).
"""

from __future__ import annotations

from functools import cache
from itertools import count

import torch

EXCESS = 1.1  # the most learning rates that a new entry may move in a step


@cache
def longest_past(beta1: float, beta2: float) -> float:
    """The largest s with h(k) / h(k + s) <= EXCESS for every k, and for every smaller s.

    8 for betas (0.9, 0.999); infinite for (0.9, 0.95), where h itself stays below; 0 for beta1 = 0.
    """
    k = torch.arange(1, int(100 / (1 - beta1)) + 2000, dtype=torch.float64)
    h = (1 - beta1**k) / (1 - beta2**k).sqrt()
    if float(h.max()) <= EXCESS:
        return float("inf")
    return float(next(s for s in count() if s > 1000 or float((h[: -s - 1] / h[s + 1 :]).max()) > EXCESS))
