"""What growing the optimizer's moments with the model is worth: policies of `lf.grow_optimizer`, over seeds.

    python -m benchmarks.optimizer_state --threads 1

The task of benchmarks/defaults.py at the demo's learning rate after growth. A variant is a method and a
policy. Results are kept in benchmarks/results/optimizer_state.json.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.defaults import Variant, ligo, study

OUT = Path("benchmarks/results/optimizer_state.json")
METHODS = {
    "stack": Variant("stack"),
    "net2net+stack": Variant("net2net+stack"),
    "ligo": ligo(tie=False, width_init="normal"),
}
POLICIES = {
    "stack": ("map", "keep", "fresh"),  # copies that are not rescaled: the gradients' map is the weights'
    "net2net+stack": ("gradient", "map", "keep", "fresh"),
    "ligo": ("gradient", "map", "keep", "fresh"),
}
VARIANTS = {
    f"{method}, {policy}": replace(variant, moments=policy, task={"grown_lr": 1.5e-3})
    for method, variant in METHODS.items()
    for policy in POLICIES[method]
}

if __name__ == "__main__":
    study(VARIANTS, OUT, __doc__)
