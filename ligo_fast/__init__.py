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
    from .checkpoint import load_operator, save_operator
    from .exact.certificate import Certificate, certify
    from .growing import grow
    from .moments.optimizer_state import grow_optimizer
    from .operator import GrowthOperator
    from .processes.distributed import Traffic, traffic
    from .training.growth_state import GrowthState
    from .training.learning import learn
    from .training.optimizer import GrowthOptimizer
    from .training.schedule import GrowthSchedule
else:
    # No module here is named like a function: importing it would put it in the function's place.
    _HOMES = {
        "architectures": ("Architecture", "Size", "register_architecture"),
        "exact.certificate": ("Certificate", "certify"),
        "checkpoint": ("load_operator", "save_operator"),
        "processes.distributed": ("Traffic", "traffic"),
        "growing": ("grow",),
        "training.growth_state": ("GrowthState",),
        "training.learning": ("learn",),
        "operator": ("GrowthOperator",),
        "training.optimizer": ("GrowthOptimizer",),
        "moments.optimizer_state": ("grow_optimizer",),
        "training.schedule": ("GrowthSchedule",),
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
