"""Plain arguments, checked by name where they come in."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

from .errors import GrowthError

SEEDS = range(-(1 << 63), 1 << 64)  # what torch's generators take


def check_seed(seed: Any) -> int:
    """A seed as an integer.

    Raises:
        GrowthError: for anything else, or one beyond 64 bits.
    """
    number = _whole("seed", seed)
    if number not in SEEDS:
        raise GrowthError(f"seed={seed!r} has more than 64 bits")
    return number


def check_noise(noise: Any) -> float:
    """Noise in standard deviations, as `check_amount`."""
    return check_amount("noise", noise)


def check_amount(name: str, amount: Any) -> float:
    """A share, a norm, a spread.

    Raises:
        GrowthError: for anything but a finite number of at least 0.
    """
    try:
        value = float(amount) if not isinstance(amount, str) else math.nan
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise GrowthError(f"{name}={amount!r}: a finite number of at least 0 is needed")
    return value


def check_steps(steps: Any, name: str = "steps", least: int = 1) -> int:
    """A number of steps.

    Raises:
        GrowthError: for anything but an integer of at least `least`.
    """
    number = _whole(name, steps)
    if number < least:
        raise GrowthError(f"{name}={steps!r}: at least {'one' if least == 1 else least} is needed")
    return number


def check_size(axis: str, size: Any) -> int:
    """The size of an axis.

    Raises:
        GrowthError: for anything but an integer of at least 1.
    """
    try:
        number = 0 if isinstance(size, bool) else operator.index(size)
    except TypeError:
        number = 0
    if number < 1:
        raise GrowthError(f"axis {axis}: {size!r} is not a size")
    return number


def check_optimizer(inner: Any) -> None:
    """Raises GrowthError unless this may be the class of an optimizer."""
    if not callable(inner):
        raise GrowthError(f"optimizer={inner!r}: an optimizer's class is needed, such as torch.optim.AdamW")


def check_batches(name: str, batches: Any) -> None:
    """Raises GrowthError unless this is something to take batches from."""
    if not isinstance(batches, Iterable):
        raise GrowthError(f"{name}={batches!r}: an iterable of batches is needed")


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise GrowthError(f"{name}={value!r}: an integer is needed") from None
