"""The correctness gate: no time is reported unless outputs and gradients match a float64 reference.

The rule is that of the tests: the error against float64 may be at most twice the error that plain float32
torch (here the published sequence) makes itself, three times for gradients. Errors are relative to each
tensor and averaged over the tensors of one kind: a single small tensor has too few roundings to compare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import ligo_fast as lf
from benchmarks import published, rounding
from benchmarks.published import Factors
from benchmarks.sequence import Sequence

Tensors = Mapping[str, Tensor]
Kinds = dict[str, dict[str, Tensor]]
Check = dict[str, bool | float]


def compare(ours: Kinds, plain: Kinds, exact: Kinds, allowed: float) -> dict[str, Check]:
    """For each kind, whether our error is at most `allowed` times plain torch's."""
    checks: dict[str, Check] = {}
    for kind, reference in exact.items():
        checks[kind] = check(*(relative_error(values[kind], reference) for values in (ours, plain)), allowed)
    return checks


def check(ours: float, plain: float, allowed: float) -> Check:
    """Our error beside plain torch's; one that is not a number is red."""
    return {"green": ours <= allowed * plain, "ours": ours, "plain": plain, "allowed": allowed}


def relative_error(values: Tensors, exact: Tensors) -> float:
    """Root mean square over tensors of |values - exact| / |exact|; infinite when the names differ."""
    if values.keys() != exact.keys():
        return float("inf")
    return root_mean_square([error_of(values[name], tensor) for name, tensor in exact.items()])


def error_of(values: Tensor, exact: Tensor) -> Tensor:
    """|values - exact| / |exact| of one tensor."""
    return (values.double() - exact).norm() / exact.norm()


def root_mean_square(errors: list[Tensor]) -> float:
    return float(torch.stack(errors).square().mean().sqrt())


def reference_run(stacked: Tensors, factors: Factors, grads: Tensors) -> tuple[dict[str, Tensor], Factors]:
    """The published sequence in float64: large parameters, and factors that hold their gradients."""
    exact = factors.double()
    large = published.grow({name: tensor.double() for name, tensor in stacked.items()}, exact)
    published.backward(large, {name: grad.double() for name, grad in grads.items()})
    return large, exact


def outputs(large: Tensors) -> Kinds:
    """Large parameters by kind."""
    kinds: Kinds = {"vectors": {}, "matrices": {}}
    for name, tensor in large.items():
        kinds["vectors" if tensor.dim() == 1 else "matrices"][name] = tensor.detach()
    return kinds


def gradients(factors: Factors) -> Kinds:
    """Gradients of the shared maps by axis and of the depth matrices by parameter."""
    depth = {name: torch.stack([_grad(row) for row in rows]) for name, rows in factors.depth.items()}
    return {"width": {axis: _grad(leaf) for axis, leaf in _width(factors).items()}, "depth": depth}


def operator_gradients(op: nn.Module, factors: Factors) -> Kinds:
    """The operator's gradients as `gradients` names them; its factors are known by their values."""
    depth = {name: torch.stack(rows) for name, rows in factors.depth.items()}
    found: Kinds = {"width": {}, "depth": {}}
    for parameter in op.parameters():
        for kind, known in (("width", _width(factors)), ("depth", depth)):
            names = [name for name, values in known.items() if torch.equal(values, parameter)]
            found[kind] |= {name: _grad(parameter) for name in names}
    return found


def _width(factors: Factors) -> dict[str, Tensor]:
    return factors.layers[0] | {"embed": factors.outer["embed"]}


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def layer_by_layer(op: lf.GrowthOperator) -> dict[str, dict[str, Check]]:
    """The gate of an operator of any size, for "apply" and for "pullback", after both were called.

    Large parameters hold what `apply_` wrote, their gradients what `pullback` read, and the factors'
    gradients what it added to zero. The yardstick is the published sequence with operands rounded to the
    operator's precision, summed in float32 and written in the parameters' dtype (`rounding.py`); float64
    needs the memory of one layer at a time.
    """
    exact = Sequence(op, torch.float64)
    plain = Sequence(op, torch.float32, rounding.product(op.precision))
    errors: dict[str, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for reference, cut in zip(exact.parts, plain.parts, strict=True):
        for number, name in enumerate(reference.piece.large):
            p = op.large.get_parameter(name)
            assert p.grad is not None
            ours, g = reference.block(p.detach()), reference.block(p.grad)
            (truth,), (other,) = exact.layer([reference], number), plain.layer([cut], number)
            kind = "vectors" if p.dim() == 1 else "matrices"
            for found, values in zip(errors[kind], (ours, other.detach().to(p.dtype)), strict=True):
                found.append(error_of(values, truth.detach()))
            for y in (truth, other):
                if y.requires_grad:
                    y.backward(g.to(y.dtype))
    applied = {
        kind: check(root_mean_square(ours), root_mean_square(other), 2.0)
        for kind, (ours, other) in errors.items()
    }
    true_gradients = exact.gradients(op)
    named = dict(op.named_parameters())
    found = {kind: {n: _grad(named[n]) for n in grads} for kind, grads in true_gradients.items()}
    return {"apply": applied, "pullback": compare(found, plain.gradients(op), true_gradients, allowed=3.0)}
