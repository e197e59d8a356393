"""ligo_fast: grow trained transformers wider and deeper, one linear map per axis."""

from . import architectures, maps, methods, ops, reference
from .architectures import Architecture, Size, register_architecture
from .certify import Certificate, certify
from .checkpoint import GrowthState
from .distributed import Traffic, traffic
from .errors import GrowthError
from .grow import grow
from .learn import learn
from .operator import GrowthOperator
from .optimizer import GrowthOptimizer
from .optimizer_state import grow_optimizer

__version__ = "0.1.0"
__all__ = [
    "Architecture",
    "Certificate",
    "GrowthError",
    "GrowthOperator",
    "GrowthOptimizer",
    "GrowthState",
    "Size",
    "Traffic",
    "architectures",
    "certify",
    "grow",
    "grow_optimizer",
    "learn",
    "maps",
    "methods",
    "ops",
    "reference",
    "register_architecture",
    "traffic",
]
