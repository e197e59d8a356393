"""One case: gate, then seconds of our call and of its peers in turn, beside the machine's rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..compute.order import rows_first
from ..errors import GrowthError
from ..maps import Map
from ..maps.base import is_learned
from ..operator import GrowthOperator
from .gate import Checks, Gate, inexact, is_green, is_near
from .models import fill_, normal
from .timing import Stopwatch, Variant, backend, copy_runner, matmul_runner, nothing, ratio, summarize

OURS, PLAIN = "ours", "plain torch"


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of a module's parameters, tied ones once."""
    return sum(p.nbytes for p in model.parameters())


def fewest(op: GrowthOperator, work: str) -> tuple[int, int]:
    """Bytes and FLOPs that "apply" or "pullback" needs at least, both of one algorithm: width before depth.

    Its products run on the layers of the model that has fewer, and no product is done twice: the pull-back
    finds in memory what `apply` made of the small weights, in the precision of the products.

    Bytes: small parameters, large ones (the pull-back: their gradients) and factors once; for the pull-back
    the factors' gradients and what it finds in memory, too. FLOPs: of the products alone. Mixing layers takes
    a few operations for each number that is read, and no tensor core does them: that is left to the bytes.
    """
    size = parameter_bytes(op.small) + parameter_bytes(op.large) + parameter_bytes(op)
    if work == "pullback":
        size += parameter_bytes(op)
    flops = found = 0
    for piece in op.pieces:
        u, v = piece.rows, piece.cols
        if not isinstance(u, Map) or not isinstance(v, Map):  # the gate refuses
            continue
        layers = 1 if piece.depth is None else min(piece.depth.shape)
        if not rows_first(layers, u, v):
            u, v = v, u
        (o2, o1), (i2, i1) = u.shape, v.shape
        first, second = u.flops(layers * i1), v.flops(layers * o2)  # U X, and that times V^T
        if work == "apply":
            flops += first + second
            continue
        if _is_learned(u):  # its own gradient, and the product that brings one to the units it mixes
            flops += first + v.flops(layers * (o2 - u.selected))
        if _is_learned(v):
            flops += second
        if piece.depth is not None and _is_learned(piece.depth):
            found += layers * (o2 * i2 - o1 * i1)
        elif _is_learned(v):
            found += layers * (o2 - o1) * i1
    return size + found * (2 if op.precision == "bf16" else 4), flops


def _is_learned(m: Map) -> bool:
    return any(map(is_learned, m.factors().values()))


@dataclass(frozen=True)
class Effort:
    """How long to measure: seconds and rounds of each part, and the sizes of the machine's rates."""

    seconds: float = 8.0
    most: int = 30
    least: int = 5
    product: int = 2048
    copy_megabytes: int = 256


QUICK = Effort(0.0, 2, 2, 64, 1)


def effort_for(device: torch.device, seconds: float) -> Effort:
    """A GPU needs larger products and copies to reach its rates."""
    return Effort(seconds, product=8192, copy_megabytes=2048) if device.type == "cuda" else Effort(seconds)


@dataclass
class Peer:
    """What else does the work.

    Attributes:
        results: what a call left: large parameters, or factors' gradients, by the operator's names.
        own_bytes: of its peak that are its results, where ours are the parameters that are there already.
    """

    variant: Variant
    results: Callable[[], Mapping[str, Tensor]]
    own_bytes: int = 0


def compare(
    peers: Mapping[str, Peer],
    gates: Mapping[str, Checks],
    watch: Stopwatch,
    effort: Effort,
    work: tuple[int, int],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Time peers in turn, ours among them, beside a copy and a product; `work` is fewest bytes and FLOPs."""
    size, flops = work
    rates = {
        "matmul": matmul_runner(effort.product, watch.device, dtype),
        "copy": copy_runner(effort.copy_megabytes, watch.device),
    }
    timed = {name: peer.variant for name, peer in peers.items()}
    timed |= {name: Variant(run) for name, (run, _) in rates.items()}
    rounds = watch.rounds(timed, effort.seconds, effort.most, effort.least)
    times = watch.seconds(timed, rounds)
    floor = [
        max(flops * a / rates["matmul"][1], size * b / rates["copy"][1])
        for a, b in zip(times["matmul"], times["copy"], strict=True)
    ]
    rows: dict[str, Any] = {}
    for name, peer in peers.items():
        seconds, extra = summarize(times[name]), watch.extra_bytes(peer.variant)
        rows[name] = {
            "seconds": seconds,
            "gb_per_second": size / seconds["median"] / 1e9,
            "tflops": flops / seconds["median"] / 1e12,
            "floor / time": ratio(floor, times[name]),
            "gate": gates[name],
            "extra_bytes": None if extra is None else extra - peer.own_bytes,
            "launches": watch.launches(peer.variant),
        }
    return {
        "status": "measured",
        "variants": rows,
        "speed-up": {name: ratio(times[name], times[OURS]) for name in peers if name != OURS},
        "fewest bytes": size,
        "fewest flops": flops,
        "copy_gb_per_second": rates["copy"][1] / summarize(times["copy"])["median"] / 1e9,
        "matmul_tflops": rates["matmul"][1] / summarize(times["matmul"])["median"] / 1e12,
        "rounds": rounds,
    }


@dataclass
class Bench:
    """An operator with random weights, and what does its work."""

    op: GrowthOperator
    watch: Stopwatch
    effort: Effort = field(default_factory=Effort)
    ours: str = "auto"  # backend

    def mine(self, work: str, name: str) -> Peer:
        """The operator itself, on a backend."""
        op, call = self.op, self.op.apply_ if work == "apply" else self.op.pullback

        def run() -> None:
            with backend(name):
                call()

        def fresh() -> None:
            """In place, as an optimizer does: a call that finds no gradients makes and zeroes them."""
            if grads := [p.grad for p in op.parameters() if p.grad is not None]:
                torch._foreach_zero_(grads)

        def results() -> Mapping[str, Tensor]:
            if work == "apply":
                return dict(op.large.named_parameters())
            return {n: p.grad.clone() for n, p in op.named_parameters() if p.grad is not None}

        return Peer(Variant(run, fresh if work == "pullback" else nothing), results)

    def measure(
        self, work: str, peers: Mapping[str, Peer] | None = None, alone: bool = False
    ) -> dict[str, Any]:
        """Everything about "apply" or "pullback": status, and where it is "measured" the numbers.

        A peer whose result is wrong or that fails is left out, with the reason; one that only rounds more
        than ours may stays, with its error. `alone` leaves out plain torch, which the gate of a pull-back
        needs.
        """
        everyone = {OURS: self.mine(work, self.ours), PLAIN: self.mine(work, PLAIN), **(peers or {})}
        if alone and work == "apply":
            del everyone[PLAIN]
        gates, why = self.gates(work, everyone)
        if OURS in why:
            status = "red gate" if OURS in gates else "failed"
            return {"status": status, "reason": why[OURS], "gate": gates.get(OURS, {})}
        able = {name: peer for name, peer in everyone.items() if name not in why}
        with backend(self.ours):
            left = len(self.op._execution.compiled.left_to_torch())
        buffer, workspace = kept_bytes(self.op)  # kept from call to call, and extra all the same
        able[OURS].own_bytes = -(workspace + (buffer if left else 0))
        if PLAIN in able:
            able[PLAIN].own_bytes = -buffer
        found = compare(able, gates, self.watch, self.effort, fewest(self.op, work), self.op._large_dtype)
        found["variants"] |= {name: {"seconds": None, "reason": reason} for name, reason in why.items()}
        return found | {"pieces left to torch": left}

    def gates(self, work: str, everyone: Mapping[str, Peer]) -> tuple[dict[str, Checks], dict[str, str]]:
        """Run each once and check it: checks by name, and why one is left out.

        A pull-back finds what `apply_` left, as in a step of learning: ours in the workspace, plain torch in
        the large parameters, which is why its `apply_` is the last to write them.
        """
        gate = Gate(self.op)
        if work == "pullback":
            random_gradients(self.op)
            with backend(self.ours):
                self.op.apply_()
            gate.begin_gradients()
        gates: dict[str, Checks] = {}
        why: dict[str, str] = {}
        plain: Mapping[str, Tensor] = {}
        for name in sorted(everyone, key=lambda n: n != PLAIN):  # plain torch first: it is the yardstick
            peer = everyone[name]
            try:
                if work == "apply":
                    for p in self.op.large.parameters():  # what is not written is no number
                        p.detach().fill_(torch.nan)
                elif name == PLAIN:
                    with backend(PLAIN):
                        self.op.apply_()
                peer.variant.before()
                peer.variant.run()
                self.watch.synchronize()
                found = peer.results()
                plain = found if name == PLAIN else plain
                if work == "pullback" and not plain:
                    why[name] = "plain torch failed: no yardstick"
                    continue
                gates[name] = gate.outputs(found) if work == "apply" else gate.gradients(found, plain)
                strict = name in (OURS, PLAIN)
                if not (is_green(gates[name]) if strict else is_near(gates[name], self.op._large_dtype)):
                    why[name] = inexact(gates[name])
            except GrowthError:
                raise
            except Exception as error:  # a compiler raises anything
                why[name] = one_line(error)
            finally:
                peer.variant.after()
        if work == "pullback":
            random_gradients(self.op)
        return gates, why


def random_gradients(op: GrowthOperator) -> None:
    """Give every large parameter a gradient."""
    noise = normal(op._large_dtype, op.device, 1)
    for p in op.large.parameters():
        p.grad = torch.empty_like(p) if p.grad is None else p.grad
        fill_(p.grad, noise)


def kept_bytes(op: GrowthOperator) -> tuple[int, int]:
    """What an operator keeps from call to call: torch's buffer, and what the kernels' plan works in."""
    kept = op._execution
    held = kept.workspace._buffer
    plan = None if kept.compiled.plan is None else kept.compiled.plan.plan
    return 0 if held is None else held.nbytes, 0 if plan is None else plan.workspace.nbytes


def one_line(error: BaseException) -> str:
    """An error in one line; of a long text the first line says what it is about."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]
