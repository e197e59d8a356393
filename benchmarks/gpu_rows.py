"""One row of the GPU benchmark in its own process: `python -m benchmarks.gpu_rows bert --out FILE`.

Growing (`apply_`), its pull-back and, where the row has a model for it, a learning step. What was measured is
written after each part, so that a later failure loses nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import ligo_fast as lf
from benchmarks import gate
from benchmarks.gpu_timing import facts, graph_replays
from benchmarks.learning import forward_backward, random_batch
from benchmarks.models import build
from benchmarks.peers import COMPILED, peers, published
from ligo_fast.bench.cases import CASES, Case, group, ligo
from ligo_fast.bench.measure import OURS, Bench, Effort, effort_for, one_line, random_gradients
from ligo_fast.bench.timing import Stopwatch, Variant, backend, ratio, summarize

WORK = ("apply", "pullback")
REHEARSAL = Effort(0.0, 1, 1, 64, 1)


@dataclass
class Settings:
    """Where to measure, and whether it is a rehearsal on a CPU."""

    device: torch.device
    rehearsal: bool

    @property
    def effort(self) -> Effort:
        return REHEARSAL if self.rehearsal else effort_for(self.device, seconds=5.0)


def compile_published(case: Case, settings: Settings) -> None:
    """What torch.compile makes of the published sequence goes to its cache on the disk."""
    op = case.operator(settings.device)
    random_gradients(op)
    grads = {n: p.grad for n, p in op.large.named_parameters() if p.grad is not None}
    for sequence in published(op, case.dtype, compiled=not settings.rehearsal).values():
        sequence.forward()
        sequence.backward(grads)


class Row:
    """Measurements of one case; `write` saves what there is."""

    def __init__(self, case: Case, settings: Settings, out: Path) -> None:
        self.case, self.settings, self.out = case, settings, out
        self.watch = Stopwatch(settings.device, cold=not settings.rehearsal)
        self.parts: dict[str, dict[str, Any]] = {}

    def write(self) -> None:
        self.out.write_text(json.dumps(self.parts, indent=1) + "\n")

    def measure(self) -> None:
        """Every part; one that fails says why."""
        self._part("growth", self._grow)
        gc.collect()
        if self.settings.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.case.batch is not None:
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
        op = self.case.operator(self.settings.device)
        random_gradients(op)
        with backend("triton"):
            op.apply_()
            # of apply_ before the first pull-back, which makes tables and needs more memory
            graphs = {"apply": self._graph(op, "apply", op.pullback)}
            op.pullback()
            graphs["pullback"] = self._graph(op, "pullback", lambda: with_other_gradients(op))
        checks = gate.layer_by_layer(op)
        bench = Bench(op, self.watch, self.settings.effort, ours="triton")
        sequences = published(op, self.case.dtype, compiled=not self.settings.rehearsal)
        for work in WORK:
            if not all(c["green"] for c in checks[work].values()):
                reason = "the result is not as exact as it has to be"
                self.parts[work] = {"status": "red gate", "reason": reason, "gate": checks[work]}
                continue
            part = bench.measure(work, peers(op, work, sequences)) | {"gate": checks[work]}
            if part["status"] == "measured":
                if self.settings.rehearsal:
                    part["variants"][COMPILED] = {"seconds": None, "reason": "not in a rehearsal"}
                part["variants"][OURS] |= self._facts(bench, work)
                part["graph"] = graphs[work]
            self.parts[work] = part
            self.write()

    def _facts(self, bench: Bench, work: str) -> dict[str, Any]:
        """The host's part, which only a GPU has; of the pull-back also what it costs without `apply_`."""
        op, before = bench.op, bench.mine(work, bench.ours).variant.before
        with backend(bench.ours):  # not timed
            call = Variant(op.apply_ if work == "apply" else op.pullback, before)
            found = {k: v for k, v in facts(self.watch, call).items() if k in ("host_ms", "host_sync")}
            if work == "pullback":
                alone = from_the_factors_alone(op, before)
                (seconds,) = self.watch.seconds({"": alone}, self.settings.effort.least).values()
                launches = self.watch.launches(alone)
                found["from the factors alone"] = {"seconds": summarize(seconds), "launches": launches}
        return found

    def _graph(self, op: lf.GrowthOperator, work: str, between: Callable[[], object]) -> str | None:
        if self.settings.device.type != "cuda":
            return None
        factors = [p.grad for p in op.parameters() if p.grad is not None]
        results = [p.detach() for p in op.large.parameters()] if work == "apply" else factors
        value = float("nan") if work == "apply" else 0.0

        def reset() -> None:
            for t in results:
                t.fill_(value)

        return graph_replays(op.apply_ if work == "apply" else op.pullback, reset, results, between)

    # learning

    def _step(self) -> None:
        batch_size = self.case.batch
        assert batch_size is not None
        if find_spec("transformers") is None:
            reason = "needs transformers, which is not installed"
            self.parts["step"] = {"status": "skipped", "reason": reason}
            return
        small, large = (m.to(self.settings.device, self.case.dtype) for m in build(self.case))
        batch = {name: t.to(self.settings.device) for name, t in random_batch(self.case).items()}
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
            effort = self.settings.effort
            rounds = (
                1 if self.settings.rehearsal else self.watch.rounds(variants, effort.seconds, effort.most)
            )
            times = self.watch.seconds(variants, rounds)
            found = {name: facts(self.watch, variant) for name, variant in variants.items()}
        self.parts["step"] = {
            "status": "measured",
            "tokens": batch_size[0] * batch_size[1],
            "variants": {name: {"seconds": summarize(times[name])} | found[name] for name in variants},
            "learning / plain": ratio(times["learning"], times["plain"]),
            "rounds": len(times["plain"]),
        }


def from_the_factors_alone(op: lf.GrowthOperator, before: Callable[[], object]) -> Variant:
    """A pull-back that finds nothing of what `apply_` made: the factors count as written since."""

    def written() -> None:
        before()
        torch.autograd.graph.increment_version(list(op.parameters()))

    return Variant(op.pullback, written)


def with_other_gradients(op: lf.GrowthOperator) -> None:
    """A pull-back of gradients elsewhere, without memory for them: those of other parameters of a shape."""
    parameters = list(op.large.parameters())
    before = [p.grad for p in parameters]
    alike: dict[torch.Size, list[torch.nn.Parameter]] = {}
    for p in parameters:
        alike.setdefault(p.shape, []).append(p)
    for same in alike.values():
        turned = [p.grad for p in (*same[1:], same[0])]
        for p, grad in zip(same, turned, strict=True):
            p.grad = grad
    op.pullback()
    for p, grad in zip(parameters, before, strict=True):
        p.grad = grad


def main() -> None:
    """Measure one row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_rows", description=__doc__)
    parser.add_argument("case", choices=[*group("growth"), *group("tiny")])
    parser.add_argument("--rehearse", action="store_true")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--out", type=Path)
    wanted.add_argument(
        "--compile", action="store_true", help="measure nothing, but fill torch.compile's cache"
    )
    options = parser.parse_args()
    settings = Settings(torch.device("cpu" if options.rehearse else "cuda"), options.rehearse)
    if not options.rehearse:
        torch.set_float32_matmul_precision("high")
    if options.compile:
        compile_published(CASES[options.case], settings)
        return
    row = Row(CASES[options.case], settings, options.out)
    row.parts["models"] = row.case.facts()
    row.measure()
    if any(part.get("status") in ("failed", "red gate") for part in row.parts.values()):
        raise SystemExit(f"{options.case}: {json.dumps(row.parts)[-2000:]}")


if __name__ == "__main__":
    main()
