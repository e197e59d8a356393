"""Our operator and the published sequence on the same models, factors and gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from benchmarks import gate, published
from benchmarks.measure import Clock, Summary, Times, copy_runner, interleave, matmul_runner, ratio
from benchmarks.models import build, design_flops, parameter_bytes
from benchmarks.published import Factors
from ligo_fast.bench.cases import Case, ligo


@dataclass
class Published:
    """The baseline as two calls; forward leaves the graph that backward consumes."""

    stacked: dict[str, Tensor]
    factors: Factors
    grads: dict[str, Tensor]
    large: dict[str, Tensor] = field(default_factory=dict)

    def forward(self) -> None:
        self.large = published.grow(self.stacked, self.factors)

    def backward(self) -> None:
        published.backward(self.large, self.grads)
        self.large = {}


class Growth:
    """`op` beside the baseline twice: with the operator's shared maps, and with one map a layer."""

    def __init__(self, case: Case, quick: bool = False) -> None:
        self.rates = (128, 1) if quick else (3072, 256)  # side of the product, megabytes of the copy
        self.small, self.large = build(case)
        self.op = ligo(self.small, self.large)
        self.grads = {name: torch.randn_like(p) for name, p in self.large.named_parameters()}
        for name, parameter in self.large.named_parameters():
            parameter.grad = self.grads[name]
        self.shared = self._published(shared_maps=True)
        self.as_published = self._published(shared_maps=False)

    def _published(self, shared_maps: bool) -> Published:
        """As published, the tied decoder is grown a second time."""
        tied = {"cls.predictions.decoder.weight": self.grads["bert.embeddings.word_embeddings.weight"]}
        width = {axis: dense.float() for axis, dense in self.op.width_maps().items()}
        split = {name.rpartition(".layer.*."): mix.float() for name, mix in self.op.depth_maps().items()}
        depth = {name: mix for (_, layered, name), mix in split.items() if layered}
        factors = Factors.from_maps(width, depth, shared_maps)
        return Published(published.stack_layers(self.small, tied=shared_maps), factors, self.grads | tied)

    def check(self) -> dict[str, gate.Check]:
        """The gate, for outputs and for gradients."""
        factors = self.shared.factors
        exact, exact_factors = gate.reference_run(self.shared.stacked, factors, self.grads)
        self.shared.forward()
        plain = gate.outputs(self.shared.large)
        self.shared.backward()
        self.op.apply_()
        self.op.pullback()
        ours = gate.outputs(dict(self.large.named_parameters()))
        ours_gradients = gate.operator_gradients(self.op, factors)
        plain_gradients, exact_gradients = gate.gradients(factors), gate.gradients(exact_factors)
        return gate.compare(ours, plain, gate.outputs(exact), allowed=2.0) | gate.compare(
            ours_gradients, plain_gradients, exact_gradients, allowed=3.0
        )

    def measure(self, rounds: int, clock: Clock) -> tuple[Times, dict[str, Summary], dict[str, float]]:
        """Seconds of every variant, the ratios that matter, and the machine's rates."""
        matmul, product_flops = matmul_runner(self.rates[0])
        copy, copy_bytes = copy_runner(self.rates[1])
        variants = {
            "matmul": matmul,
            "copy": copy,
            "apply_": self.op.apply_,
            "published forward": self.shared.forward,
            "pullback": self.op.pullback,
            "published backward": self.shared.backward,
            "as published, forward": self.as_published.forward,
            "as published, backward": self.as_published.backward,
        }
        times = interleave(variants, rounds, clock=clock)
        ratios = {
            "apply_ / published forward": ratio(times["apply_"], times["published forward"]),
            "pullback / published backward": ratio(times["pullback"], times["published backward"]),
            "apply_ / as published": ratio(times["apply_"], times["as published, forward"]),
            "pullback / as published": ratio(times["pullback"], times["as published, backward"]),
        }
        fewest_bytes = parameter_bytes(self.small) + parameter_bytes(self.large)
        formula = design_flops(self.small, self.large)
        for name, passes, own in (
            ("apply_", 1, self.op.flops("apply")),
            ("pullback", 2, self.op.flops("pullback, grown")),
        ):
            design = [seconds * passes * formula / product_flops for seconds in times["matmul"]]
            products = [seconds * own / product_flops for seconds in times["matmul"]]
            copies = [seconds * fewest_bytes / copy_bytes for seconds in times["copy"]]
            floor = [max(pair) for pair in zip(products, copies, strict=True)]
            ratios[f"{name}: design FLOPs at matmul rate / time"] = ratio(design, times[name])
            ratios[f"{name}: own FLOPs at matmul rate / time"] = ratio(products, times[name])
            ratios[f"{name}: floor / time"] = ratio(floor, times[name])
        rates = {
            "matmul GFLOP/s": product_flops / median(times["matmul"]) / 1e9,
            "copy GB/s": copy_bytes / median(times["copy"]) / 1e9,
            "design GFLOPs": formula / 1e9,
            "own GFLOPs": self.op.flops("apply") / 1e9,
        }
        return times, ratios, rates
