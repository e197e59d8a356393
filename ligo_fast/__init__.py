"""ligo_fast: grow trained transformers wider and deeper, one linear map per axis."""

from . import architectures, checkpoint, maps, methods, ops, reference
from .architectures import Architecture, Size, register_architecture
from .certify import Certificate, certify
from .checkpoint import load_operator, save_operator
from .distributed import Traffic, traffic
from .errors import GrowthError
from .grow import grow
from .growth_state import GrowthState
from .learn import learn
from .operator import GrowthOperator
from .optimizer import GrowthOptimizer
from .optimizer_state import grow_optimizer
from .schedule import GrowthSchedule

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
