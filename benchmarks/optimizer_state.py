"""What growing the optimizer's moments with the model is worth: policies of `lf.grow_optimizer`, over seeds.

    python -m benchmarks.optimizer_state --threads 1

The task of benchmarks/defaults.py at the demo's learning rate after growth. A variant is a method and a
policy, with the usual warm-up after growth or none. Results: benchmarks/results/optimizer_state.json.
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
# copies that are not rescaled: the gradients' map is the weights'
POLICIES = dict.fromkeys(METHODS, ("gradient", "map", "keep", "fresh")) | {"stack": ("map", "keep", "fresh")}
VARIANTS = {
    f"{method}, {policy}": replace(variant, moments=policy, task={"grown_lr": 1.5e-3})
    for method, variant in METHODS.items()
    for policy in POLICIES[method]
} | {
    f"{method}, {policy}, no warm-up": replace(
        METHODS[method], moments=policy, task={"grown_lr": 1.5e-3, "grown_warmup": 0}
    )
    for method in ("net2net+stack", "ligo")
    for policy in ("gradient", "fresh")
}

if __name__ == "__main__":
    study(VARIANTS, OUT, __doc__)
