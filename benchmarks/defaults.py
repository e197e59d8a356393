"""How LiGO's defaults were chosen: variants of growing and learning, on the demo's task, over seeds.

    python -m benchmarks.defaults --seeds 0,1,2

Each variant grows the same small model of its seed and trains on the same batches as scratch. Results are
kept in benchmarks/results/defaults.json, one entry a variant and seed; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import ligo_fast as lf
from ligo_fast.demo.config import Config
from ligo_fast.demo.cost import Cost, training_flops
from ligo_fast.demo.data import Batches, load_corpus
from ligo_fast.demo.report import Run, compare, environment
from ligo_fast.demo.train import build_gpt2, make_optimizer, train

OUT = Path("benchmarks/results/defaults.json")
EARLY = (20, 40, 100)  # steps after growth whose losses are kept beside the first and the last
TASK = Config(
    small_width=64, small_depth=2, small_steps=600, width=128, depth=4, steps=400, lr=3e-3, grown_lr=3e-3,
    warmup=50, grown_warmup=25, evaluate_every=20, evaluate_batch=64,
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A method with its options, how it is learned, what of the task it changes."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    learn: dict[str, Any] = field(default_factory=dict)
    batch: int = 2
    task: dict[str, Any] = field(default_factory=dict)
    moments: str = "fresh"  # the policy of `lf.grow_optimizer`


def ligo(batch: int = 2, task: dict[str, Any] | None = None, **options: Any) -> Variant:
    """LiGO with what is not the published default; options of `learn` and of the method are told apart."""
    names = lf.methods.WIDTH["ligo"].options() | lf.methods.DEPTH["ligo"].options()
    method = {k: v for k, v in options.items() if k in names}
    learn = {k: v for k, v in options.items() if k not in names}
    method = {"tie": True, "width_init": "random"} | method  # the paper's, unless a variant says otherwise
    return Variant("ligo", method, learn, batch, task or {})


VARIANTS = {
    "stack": Variant("stack"),
    "net2net+stack": Variant("net2net+stack"),
    "net2net+stack, noise 0.5": Variant("net2net+stack", {"noise": 0.5}),
    "pad+zero": Variant("pad+zero"),
    "random": Variant("random"),
    "ligo": ligo(),
    "ligo, lr 3e-3": ligo(lr=3e-3),
    "ligo, normal": ligo(width_init="normal"),
    "ligo, normal, lr 3e-3": ligo(width_init="normal", lr=3e-3),
    "ligo, tile, noise 0.3": ligo(width_init="tile", width_noise=0.3),
    "ligo, untied, normal": ligo(tie=False, width_init="normal"),
    "ligo, interpolate": ligo(depth_init="interpolate"),
    "ligo, D lr x0.3": ligo(depth_lr=0.3),
    "ligo, SGD": ligo(optimizer="SGD", lr=0.3),
    "ligo, warm-up 100 after growth": ligo(task={"grown_warmup": 100}),
    "ligo, lr 1.5e-3 after growth": ligo(task={"grown_lr": 1.5e-3}),
    "net2net+stack, lr 1.5e-3 after growth": Variant("net2net+stack", task={"grown_lr": 1.5e-3}),
    "random, lr 1.5e-3 after growth": Variant("random", task={"grown_lr": 1.5e-3}),
    "ligo, untied, normal, lr 1.5e-3 after growth": ligo(
        tie=False, width_init="normal", task={"grown_lr": 1.5e-3}
    ),
}


def run(variant: Variant, seed: int, prepared: dict[str, Any]) -> dict[str, Any]:
    """Grow, train, compare with scratch."""
    config = replace(TASK, seed=seed, **variant.task)
    batches, validation = prepared["batches"], prepared["validation"]
    small = prepared["small"]
    torch.manual_seed(seed)
    large = build_gpt2(config.width, config.depth, config, batches.device)
    op = lf.GrowthOperator(small, large, method=variant.method, seed=seed, **variant.options)
    cost, losses = Cost(), []
    if op.is_learned:
        rows = replace(batches, rows=variant.batch)
        steps = variant.learn.get("steps", 100)
        learn = {**variant.learn, "optimizer": getattr(torch.optim, variant.learn.get("optimizer", "AdamW"))}
        learned = lf.learn(op, [rows[k] for k in range(1, steps + 1)], **{"steps": steps, **learn})
        one = (
            prepared["large_flops"] * variant.batch / config.batch + op.flops("apply") + op.flops("pullback")
        )
        cost, losses = Cost(steps * one, learned.seconds), learned.losses
    op.apply_()
    optimizer = make_optimizer(large, config.grown_lr, config)
    lf.grow_optimizer(op, prepared["small_optimizer"], optimizer, variant.moments)
    curve = train(
        large, batches, validation, config, steps=config.steps, lr=config.grown_lr,
        warmup=config.grown_warmup, step_flops=prepared["large_flops"], on_step=lambda: None,
        optimizer=optimizer,
    )  # fmt: skip
    grown = Run(variant.method, cost, losses, curve, True)
    row = compare([prepared["scratch"], grown], prepared["small_cost"])[1]
    return {
        **asdict(row),
        "losses": {p.step: p.loss for p in curve if p.step in EARLY},
        "steps_for_learning": cost.flops / prepared["large_flops"],
        "learning": losses[::10],
    }


def prepare(seed: int) -> dict[str, Any]:
    """The small model and scratch's run of a seed."""
    config, device = replace(TASK, seed=seed), torch.device("cpu")
    corpus = load_corpus()
    batches = Batches(corpus.train, config.batch, config.length, seed, device)
    validation = [Batches(corpus.validation, config.evaluate_batch, config.length, 999, device)[0]]
    small = build_gpt2(config.small_width, config.small_depth, config, device)
    large = build_gpt2(config.width, config.depth, config, device)
    flops = [training_flops(m, batches[0]) for m in (small, large)]
    optimizers = [make_optimizer(m, config.lr, config) for m in (small, large)]
    curves = [
        train(
            m, batches, validation, config, steps=s, lr=config.lr, warmup=config.warmup, step_flops=f,
            on_step=lambda: None, optimizer=o,
        )
        for m, o, s, f in zip(
            (small, large), optimizers, (config.small_steps, config.steps), flops, strict=True
        )
    ]  # fmt: skip
    return {
        "small_optimizer": optimizers[0],
        "batches": batches, "validation": validation, "small": small, "large_flops": flops[1],
        "small_cost": curves[0][-1].cost, "small_loss": curves[0][-1].loss,
        "scratch": Run("scratch", Cost(), [], curves[1], False),
    }  # fmt: skip


def study(variants: dict[str, Variant], out: Path, description: str | None) -> None:
    """Run what is missing of some variants, keep it in a JSON and print the table."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="names of variants between semicolons")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    only = [name for name in args.only.split(";") if name]
    done = json.loads(args.out.read_text()) if args.out.exists() else {"results": {}}
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    done |= {"environment": environment(), "task": asdict(TASK)}
    done["runs"] = [*done.get("runs", []), {"command": command, "commit": done["environment"]["commit"]}]
    for seed in map(int, args.seeds.split(",")):
        prepared: dict[str, Any] | None = None
        for name, variant in variants.items():
            if f"{name} / {seed}" in done["results"] or (only and name not in only):
                continue
            prepared = prepared or prepare(seed)
            result = run(variant, seed, prepared)
            done["results"][f"{name} / {seed}"] = {**result, "variant": asdict(variant)}
            args.out.write_text(json.dumps(done, indent=1) + "\n")
            figures = (result[k] for k in ("initial_loss", "final_loss", "saved_small_free"))
            print(name, seed, *figures, flush=True)
    for name in variants:
        rows = [r for key, r in done["results"].items() if key.rpartition(" / ")[0] == name]
        if rows and all(r["saved"] is not None for r in rows):
            saved = [f"{mean(r[k] for r in rows):6.1%}" for k in ("saved", "saved_small_free")]
            losses = [f"{mean(r[k] for r in rows):.3f}" for k in ("initial_loss", "final_loss")]
            print(f"{name:46s} {len(rows)} seeds: saved {' / '.join(saved)}, loss {' -> '.join(losses)}")


if __name__ == "__main__":
    study(VARIANTS, OUT, __doc__)
