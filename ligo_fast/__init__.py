"""ligo_fast: grow trained transformers wider and deeper, one linear map per axis."""

from . import architectures, checkpoint, maps, methods, ops, reference
from .architectures import Architecture, Size, register_architecture
from .certify import Certificate, certify
from .checkpoint import load_operator, save_operator
from .errors import GrowthError
from .grow import grow
from .learn import learn
from .operator import GrowthOperator
from .optimizer import GrowthOptimizer

__version__ = "0.1.0"
__all__ = [
    "Architecture",
    "Certificate",
    "GrowthError",
    "GrowthOperator",
    "GrowthOptimizer",
    "Size",
    "architectures",
    "certify",
    "checkpoint",
    "grow",
    "learn",
    "load_operator",
    "maps",
    "methods",
    "ops",
    "reference",
    "register_architecture",
    "save_operator",
]
