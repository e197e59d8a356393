"""Growing checkpoint folders file to file, and operators as files; `ligo-fast grow` on the command line."""

from .folder import Checkpoint, open_checkpoint
from .grow import grow_checkpoint, run_plan
from .operators import load_operator, save_operator
from .planned import Plan, plan_growth

__all__ = [
    "Checkpoint",
    "Plan",
    "grow_checkpoint",
    "load_operator",
    "open_checkpoint",
    "plan_growth",
    "run_plan",
    "save_operator",
]
