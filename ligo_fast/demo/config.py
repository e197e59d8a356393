"""The sizes and settings of one run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ..errors import GrowthError


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers, except the text; all of it is written to the JSON."""

    small_width: int = 64
    small_depth: int = 3
    width: int = 128
    depth: int = 6
    head_dim: int = 32
    length: int = 128
    batch: int = 8
    small_steps: int = 1000
    steps: int = 900
    lr: float = 3e-3
    warmup: int = 50
    grown_lr: float = 3e-3
    grown_warmup: int = 25
    final_lr: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    evaluate_every: int = 30
    evaluate_batch: int = 64
    learn_steps: int = 100
    learn_lr: float = 1e-2
    learn_warmup: int = 10
    learn_depth_lr: float = 1.0
    learn_batch: int = 2
    width_init: str = "normal"
    width_noise: float = 0.0
    tie: bool = False
    seed: int = 0

    def check(self) -> None:
        """Whether the settings can be run with.

        Raises:
            GrowthError: naming the setting and its value.
        """
        numbers = {n: v for n, v in asdict(self).items() if type(v) in (int, float)}
        for name, value in numbers.items():
            least = 0 if name == "seed" or name.endswith("warmup") or isinstance(value, float) else 1
            if not least <= value < math.inf:  # nor is NaN
                option = f"--{name.replace('_', '-')}"
                raise GrowthError(f"{option}: {value} is less than {least} or no number")
        for small, large in (("small_width", "width"), ("small_depth", "depth")):
            a, b = getattr(self, small), getattr(self, large)
            if a > b:
                raise GrowthError(f"--{large}: {b} is less than the small model's {a}")
        for name in ("small_width", "width"):
            if getattr(self, name) % self.head_dim:
                raise GrowthError(
                    f"--{name.replace('_', '-')}: {getattr(self, name)} is no multiple of the heads' "
                    f"{self.head_dim}"
                )


QUICK = Config(
    small_depth=2,
    depth=4,
    small_steps=250,
    steps=250,
    warmup=25,
    grown_warmup=15,
    evaluate_every=10,
    evaluate_batch=32,
    learn_steps=50,
)
