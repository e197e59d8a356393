"""One row of the GPU benchmark in its own process: `python -m benchmarks.gpu_rows bert tf32 --out FILE`.

Growing (`apply_`), its pull-back and, where the row has a model for it, a learning step. What was measured is
written after each part, so that a later failure loses nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import ligo_fast as lf
from benchmarks import gate
from benchmarks.gpu_models import DTYPES, REHEARSAL, ROWS, Growth, ligo
from benchmarks.gpu_timing import Stopwatch, Variant, backend, graph_replays, one_line
from benchmarks.learning import forward_backward, random_batch
from benchmarks.measure import copy_runner, matmul_runner, ratio, summarize
from benchmarks.models import parameter_bytes
from benchmarks.sequence import Sequence

WORK = ("apply", "pullback")


def fewest(op: lf.GrowthOperator, work: str) -> tuple[int, int]:
    """Bytes and FLOPs that the work needs at least.

    Bytes: small parameters, large ones (the pull-back: their gradients) and factors once, for the pull-back
    the factors' gradients too. FLOPs: the products on every large layer, 2 (o1 i1 (i2-i1) + (o2-o1) o1 i2) or
    what the maps' structure makes of it, twice for the pull-back; or our plan's own, where they are fewer.
    """
    passes = 1 + WORK.index(work)
    size = parameter_bytes(op.small) + parameter_bytes(op.large) + passes * parameter_bytes(op)
    formula = sum(
        len(p.large) * (p.cols.flops(p.rows.shape[1]) + p.rows.flops(p.cols.shape[0])) for p in op.pieces
    )
    return size, min(op.flops(work), passes * formula)


@dataclass
class Settings:
    """How long to measure, and whether it is a rehearsal on a CPU."""

    device: torch.device
    rehearsal: bool
    seconds: float = 8.0  # for the rounds of one part
    most_rounds: int = 30


class Row:
    """Measurements of one pair of models at one precision; `write` saves what there is."""

    def __init__(self, growth: Growth, precision: str, settings: Settings, out: Path) -> None:
        self.growth, self.precision, self.settings, self.out = growth, precision, settings, out
        self.watch = Stopwatch(settings.device)
        self.parts: dict[str, dict[str, Any]] = {}
        if settings.device.type == "cuda":
            torch.set_float32_matmul_precision("high")

    def write(self) -> None:
        self.out.write_text(json.dumps(self.parts, indent=1) + "\n")

    def measure(self) -> None:
        """Every part; one that fails says why."""
        self._part("growth", self._grow)
        gc.collect()
        if self.settings.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.growth.step is not None:
            self._part("step", self._step)

    def _part(self, name: str, measure: Callable[[], None]) -> None:
        start = perf_counter()
        try:
            measure()
        except Exception as error:  # a compiler raises anything
            for work in WORK if name == "growth" else (name,):
                self.parts.setdefault(work, {"status": "failed", "reason": one_line(error)})
        self.parts.setdefault("seconds", {})[name] = round(perf_counter() - start, 1)
        self.write()

    # growing

    def _grow(self) -> None:
        op = self.growth.operator(DTYPES[self.precision], self.settings.device)
        with backend("triton"):
            op.apply_()
            op.pullback()
        checks = gate.layer_by_layer(op)
        green = {work: all(c["green"] for c in checks[work].values()) for work in WORK}
        for work in WORK:
            if not green[work]:
                reason = "the result is not as exact as it has to be"
                self.parts[work] = {"status": "red gate", "reason": reason, "gate": checks[work]}
        peers = {"published": Sequence(op, DTYPES[self.precision])}
        if not self.settings.rehearsal:
            peers["compiled"] = Sequence(op, DTYPES[self.precision], compiled=True)
        for work in WORK:
            if green[work]:
                self.parts[work] = self._measure_work(op, work, peers) | {"gate": checks[work]}
                self.write()

    def _variants(self, op: lf.GrowthOperator, work: str, peers: dict[str, Sequence]) -> dict[str, Variant]:
        """Ours first; all from the same factors and gradients."""
        call = op.apply_ if work == "apply" else op.pullback
        grads = {name: p.grad for name, p in op.large.named_parameters() if p.grad is not None}

        def ours(name: str) -> Callable[[], None]:
            def run() -> None:
                with backend(name):
                    call()

            return run

        variants = {"ours": Variant(ours("triton")), "torch backend": Variant(ours("torch"))}
        for name, peer in peers.items():
            if work == "apply":
                variants[name] = Variant(peer.forward, peer.release, peer.release)
            else:
                variants[name] = Variant(lambda p=peer: p.backward(grads), peer.forward, peer.release)
        return variants

    def _measure_work(self, op: lf.GrowthOperator, work: str, peers: dict[str, Sequence]) -> dict[str, Any]:
        variants, why = self._warm(self._variants(op, work, peers))
        if "ours" in why:
            return {"status": "failed", "reason": why["ours"]}
        dtype, device = DTYPES[self.precision], self.settings.device
        matmul, product_flops = matmul_runner(self.growth.rates["matmul_size"], device, dtype)
        copy, copy_bytes = copy_runner(self.growth.rates["copy_megabytes"], device)
        timed = variants | {"matmul": Variant(matmul), "copy": Variant(copy)}
        times = self._times(timed)
        size, flops = fewest(op, work)
        floor = [
            max(flops * a / product_flops, size * b / copy_bytes)
            for a, b in zip(times["matmul"], times["copy"], strict=True)
        ]
        rows: dict[str, Any] = {name: {"seconds": None, "reason": reason} for name, reason in why.items()}
        for name, variant in variants.items():
            rows[name] = {"seconds": summarize(times[name])} | self._facts(name, variant, op)
        ours = summarize(times["ours"])["median"]
        return {
            "status": "measured",
            "variants": rows,
            "floor / time": ratio(floor, times["ours"]),
            "speed-up": {n: ratio(times[n], times["ours"]) for n in variants if n != "ours"},
            "fewest bytes": size,
            "fewest flops": flops,
            "gb_per_second": size / ours / 1e9,
            "tflops": flops / ours / 1e12,
            "copy_gb_per_second": copy_bytes / summarize(times["copy"])["median"] / 1e9,
            "matmul_tflops": product_flops / summarize(times["matmul"])["median"] / 1e12,
            "rounds": len(times["ours"]),
            "pieces left to torch": self._left_to_torch(op),
            "graph": self._graph(op, work),
        }

    def _warm(self, variants: dict[str, Variant]) -> tuple[dict[str, Variant], dict[str, str]]:
        """Call each once; those that cannot run (memory, no compiler) are left out, with why."""
        able, why = {}, {}
        for name, variant in variants.items():
            try:
                if not self.settings.rehearsal or name != "ours":  # ours ran for the gate
                    variant()
                    self.watch.synchronize()
                able[name] = variant
            except Exception as error:  # a compiler raises anything
                variant.after()
                why[name] = one_line(error)
        if self.settings.rehearsal and "published" in variants:
            why["compiled"] = "not in a rehearsal"
        return able, why

    def _times(self, variants: dict[str, Variant]) -> dict[str, list[float]]:
        if self.settings.rehearsal:
            return self.watch.seconds(variants, 1)
        rounds = self.watch.rounds(variants, self.settings.seconds, self.settings.most_rounds)
        return self.watch.seconds(variants, rounds)

    def _facts(self, name: str, variant: Variant, op: lf.GrowthOperator) -> dict[str, Any]:
        """What `Stopwatch.facts` finds; our workspace counts as extra, a peer's new parameters do not."""
        try:
            facts = self.watch.facts(variant)
        except RuntimeError as error:
            return {"reason": one_line(error)}
        if (
            facts
            and name == "ours"
            and op._execution.plan is not None
            and op._execution.plan.plan is not None
        ):
            facts["extra_bytes"] += op._execution.plan.plan.workspace_bytes
        elif facts and name in ("published", "compiled"):
            facts["extra_bytes"] -= parameter_bytes(op.large)
        return facts

    def _left_to_torch(self, op: lf.GrowthOperator) -> int:
        return len(op._execution.left_to_torch())

    def _graph(self, op: lf.GrowthOperator, work: str) -> str | None:
        if self.settings.device.type != "cuda":
            return None
        factors = [p.grad for p in op.parameters() if p.grad is not None]
        results = [p.detach() for p in op.large.parameters()] if work == "apply" else factors
        value = float("nan") if work == "apply" else 0.0

        def reset() -> None:
            for t in results:
                t.fill_(value)

        with backend("triton"):
            return graph_replays(op.apply_ if work == "apply" else op.pullback, reset, results)

    # learning

    def _step(self) -> None:
        pair = self.growth.step
        assert pair is not None
        if find_spec("transformers") is None:
            reason = "needs transformers, which is not installed"
            self.parts["step"] = {"status": "skipped", "reason": reason}
            return
        small, large = (m.to(self.settings.device, DTYPES[self.precision]) for m in pair.build())
        batch = {name: t.to(self.settings.device) for name, t in random_batch(pair).items()}
        with backend("triton"):
            op = ligo(small, large)
            optimizer = lf.GrowthOptimizer(op, torch.optim.AdamW, lr=1e-4)

            def plain() -> None:
                forward_backward(large, batch, 1)

            def learning() -> None:
                plain()
                optimizer.step()

            variants = {"plain": Variant(plain), "learning": Variant(learning)}
            if not self.settings.rehearsal:
                variants["step alone"] = Variant(optimizer.step, plain)
                for variant in variants.values():
                    variant()
            times = self._times(variants)
            facts = {name: self.watch.facts(variant) for name, variant in variants.items()}
        self.parts["step"] = {
            "status": "measured",
            "tokens": pair.sequences * pair.length,
            "variants": {name: {"seconds": summarize(times[name])} | facts[name] for name in variants},
            "learning / plain": ratio(times["learning"], times["plain"]),
            "rounds": len(times["plain"]),
        }


def main() -> None:
    """Measure one row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_rows", description=__doc__)
    parser.add_argument("row", choices=sorted(ROWS))
    parser.add_argument("precision", choices=sorted(DTYPES))
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    growth = (REHEARSAL if options.rehearse else ROWS)[options.row]
    device = torch.device("cpu" if options.rehearse else "cuda")
    row = Row(growth, options.precision, Settings(device, options.rehearse), options.out)
    row.parts["models"] = {
        k: v for k, v in asdict(growth).items() if k in ("architecture", "small", "large", "fixed")
    }
    row.measure()
    if any(part.get("status") in ("failed", "red gate") for part in row.parts.values()):
        raise SystemExit(f"{options.row} {options.precision}: {json.dumps(row.parts)[-2000:]}")


if __name__ == "__main__":
    main()
