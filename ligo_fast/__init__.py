"""ligo_fast: grow trained transformers wider and deeper, one linear map per axis.

What is public is imported when it is first used (PEP 562): torch takes longer to import than the command line
to answer most questions. torch.ops.ligo_fast, the registered ops, come with `ligo_fast.ops`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import GrowthError

__version__ = "0.1.0"
__all__ = [
    "Architecture",
    "Certificate",
    "GrowthError",
    "GrowthOperator",
    "GrowthOptimizer",
    "GrowthSchedule",
    "GrowthState",
    "Size",
    "Traffic",
    "architectures",
    "certify",
    "checkpoint",
    "grow",
    "grow_optimizer",
    "learn",
    "load_operator",
    "maps",
    "methods",
    "ops",
    "reference",
    "register_architecture",
    "save_operator",
    "traffic",
]

if TYPE_CHECKING:
    from . import architectures, checkpoint, maps, methods, ops, reference
    from .architectures import Architecture, Size, register_architecture
    from .certificate import Certificate, certify
    from .checkpoint import load_operator, save_operator
    from .distributed import Traffic, traffic
    from .growing import grow
    from .growth_state import GrowthState
    from .learning import learn
    from .operator import GrowthOperator
    from .optimizer import GrowthOptimizer
    from .optimizer_state import grow_optimizer
    from .schedule import GrowthSchedule
else:
    # No module here is named like a function: importing it would put it in the function's place.
    _HOMES = {
        "architectures": ("Architecture", "Size", "register_architecture"),
        "certificate": ("Certificate", "certify"),
        "checkpoint": ("load_operator", "save_operator"),
        "distributed": ("Traffic", "traffic"),
        "growing": ("grow",),
        "growth_state": ("GrowthState",),
        "learning": ("learn",),
        "operator": ("GrowthOperator",),
        "optimizer": ("GrowthOptimizer",),
        "optimizer_state": ("grow_optimizer",),
        "schedule": ("GrowthSchedule",),
    }
    _HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = import_module(f".{_HOME_OF.get(name, name)}", __name__)
        value = globals()[name] = getattr(home, name) if name in _HOME_OF else home
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
