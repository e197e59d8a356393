"""Is the function kept? Run both models, and say which rules of exactness hold (`exactness`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import known_architecture
from ..axes import Axis, AxisMaps
from ..errors import GrowthError
from ..growth import Growth, growth_between
from ..maps import Map
from ..models.buffers import differing
from ..models.modes import training
from ..models.tables import parse
from ..models.target import unwrap
from ..processes.dtensors import is_sharded
from .exactness import TOLERANCE, Rule, axis_errors, rules
from .rounding import Call, coarsest, in_float32, is_half

# how much of what rounding does to the small model counts as rounding: exact growth stayed under 1.3 of it,
# with noise=0.5 under 3.5, and growth that changes the function made 11 and more (tiny models, both dtypes)
ROUNDINGS = 4


@dataclass(frozen=True)
class Certificate:
    """What `certify` found.

    Attributes:
        max_diff, mean_diff: |output difference| (logits, or hidden states read back to the small width).
        tolerance: what counts as exact: the dtype's share of the largest output, or of models in half
            precision what rounding their weights explains.
        loss_small, loss_large: when the batch has labels.
        axes: axis -> largest |V^T U - I|; rules: every condition checked.
        units: axis -> (units, distinct units) of the large model's first layer: copies that read and write
            alike receive equal gradients and stay copies until noise or dropout parts them.
        unexplained: where outputs differ and no rule is broken, what else it may be; otherwise empty.
    """

    method: str
    max_diff: float
    mean_diff: float
    tolerance: float
    loss_small: float | None
    loss_large: float | None
    axes: dict[str, float] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    units: dict[str, tuple[int, int]] = field(default_factory=dict)
    unexplained: str = ""

    @property
    def exact(self) -> bool:
        """Whether the outputs agree and no rule is broken."""
        return self.max_diff <= self.tolerance and all(rule.holds for rule in self.rules)

    def __str__(self) -> str:
        kept = "kept" if self.exact else "changed"
        if not self.exact and self.max_diff <= self.tolerance:
            kept = "not kept, by a rule that this batch does not show broken"
        lines = [
            f"{self.method}: function {kept}: max |difference| {self.max_diff:.3g}, "
            f"mean {self.mean_diff:.3g} (exact up to {self.tolerance:.3g})"
        ]
        if self.loss_small is not None and self.loss_large is not None:
            lines.append(f"loss: small {self.loss_small:.6g}, large {self.loss_large:.6g}")
        lines += [f"axis {a}: max |V^T U - I| = {e:.3g}" for a, e in self.axes.items()]
        lines += [
            f"rule {r.name}: {'holds' if r.holds else f'broken by {r.error:.3g}: {r.why}'}"
            for r in self.rules
        ]
        lines += [self.unexplained] if self.unexplained else []
        lines += [f"units of {a}: {n}, of them distinct {d}" for a, (n, d) in self.units.items()]
        return "\n".join(lines)


@torch.no_grad()
def certify(
    small: nn.Module, large: nn.Module, batch: Any, *, stored: torch.dtype | None = None
) -> Certificate:
    """Compare two models on a batch and say which rules of exactness the growth between them keeps.

    Models in half precision are compared in float32, with their weights as they are. What counts as exact for
    them is what rounding weights does to the small model, which is measured.

    Args:
        small, large: the source and the model grown from it; both are run in eval mode.
        batch: what the models take: a mapping (keyword arguments), a sequence, or one tensor.
        stored: the dtype that the weights were rounded to before, if the models hold them in a finer one, as
            a bfloat16 checkpoint that was loaded in float32.

    Raises:
        GrowthError: when outputs differ in shape and it is not known here how `large` was grown, or for a
            model that is spread over processes.
    """
    small, large = unwrap(small), unwrap(large)
    if not isinstance(batch, Mapping | list | tuple | Tensor):
        raise GrowthError(f"batch={type(batch).__name__}: a mapping, a sequence or a tensor is needed")
    for which, model in (("source", small), ("target", large)):
        if odd := next((n for n, p in model.named_parameters() if is_sharded(p)), None):
            raise GrowthError(
                f"parameter {odd} of the {which} is spread over processes: certify compares whole models, or "
                "the checkpoints of both (ligo-fast certify)"
            )
    growth = growth_between(small, large)
    dtype = coarsest(small, large)
    rounded = dtype if stored is None or not is_half(stored) else stored
    half = is_half(dtype)
    (a, loss_small), (b, loss_large) = (_run(m, in_float32(m) if half else m, batch) for m in (small, large))
    if a.shape != b.shape:
        b = _read_back(a, b, growth)
    diff = (a.double() - b.double()).abs()
    tolerance = _tolerance(dtype, small) * max(1.0, float(a.abs().max()))
    if is_half(rounded):
        c, _ = _run(small, in_float32(small, rounded_as=rounded), batch)
        tolerance += ROUNDINGS * float((a.double() - c.double()).abs().max())
    found: dict[str, Any] = {}
    if growth is not None:
        found = {
            "axes": axis_errors(growth),
            "rules": rules(growth, small, large),
            "units": _units(growth, large),
        }
    name, largest = growth.method if growth is not None else type(large).__name__, float(diff.max())
    if not largest <= tolerance:
        found["unexplained"] = _unexplained(small, large, growth, found.get("rules", []))
    return Certificate(name, largest, float(diff.mean()), tolerance, loss_small, loss_large, **found)


def _unexplained(small: nn.Module, large: nn.Module, growth: Growth | None, found: list[Rule]) -> str:
    """Why outputs differ, as far as one can tell, where no rule says so."""
    if growth is None:
        return "no rules: it is not known here how the large model was grown from this one"
    if not all(rule.holds for rule in found):
        return ""
    if other := differing(small, large):
        return f"no rule explains it: buffer {', '.join(other[:3])} is not the small model's"
    maps = growth.maps.get("embed")
    if growth.architecture.eps is None and isinstance(maps, AxisMaps) and maps.eps_scale != 1:
        return (
            f"no rule explains it: the norm's epsilon must be {maps.eps_scale:g} times the small model's, "
            "and the table does not say where it is (eps)"
        )
    return "no rule explains it: the config, weights written since, or another pair than was grown"


def _tolerance(dtype: torch.dtype, model: nn.Module) -> float:
    """Relative to the largest output, of computing in a dtype, or in float32 for half precision."""
    architecture = known_architecture(model)
    if architecture is not None and architecture.norm == "rms":
        dtype = torch.float32  # Hugging Face's RMSNorm computes in it whatever the model's dtype is
    return TOLERANCE.get(dtype, TOLERANCE[torch.float32])


def _run(model: nn.Module, call: Call, batch: Any) -> tuple[Tensor, float | None]:
    with training(model, False):
        if isinstance(batch, Mapping):
            out = call(**batch)
        else:
            out = call(*batch) if isinstance(batch, list | tuple) else call(batch)
    loss = getattr(out, "loss", None)
    if isinstance(out, Mapping):  # start_logits and end_logits, say, are compared as one
        logits = [v for n, v in out.items() if n.endswith("logits") and isinstance(v, Tensor)]
        if len(logits) > 1:
            return torch.cat([v.flatten() for v in logits]), None if loss is None else float(loss)
    for name in ("logits", "last_hidden_state"):
        if isinstance(value := getattr(out, name, None), Tensor):
            return value, None if loss is None else float(loss)
    value = out[0] if isinstance(out, list | tuple) else out
    if not isinstance(value, Tensor):
        raise GrowthError(
            f"{type(model).__name__} returned a {type(value).__name__}, not a tensor to compare"
        )
    return value, None


def _read_back(a: Tensor, b: Tensor, growth: Growth | None) -> Tensor:
    """Hidden states of the large width as the small model's: V^T h."""
    maps = growth.maps.get("embed") if growth is not None else None
    if not isinstance(maps, AxisMaps) or maps.out.shape != (b.shape[-1], a.shape[-1]):
        raise GrowthError(f"outputs are {tuple(a.shape)} and {tuple(b.shape)}: not comparable")
    flat = b.flatten(0, -2).t().to(_dtype(maps.out, b.dtype))
    return maps.role("in").left_adjoint(flat).t().view(a.shape)


def _dtype(m: Map, default: torch.dtype) -> torch.dtype:
    return next((t.dtype for t in m.factors().values()), default)


def _units(growth: Growth, large: nn.Module) -> dict[str, tuple[int, int]]:
    """Units of each basic growing axis of the first layer, and how many differ in what they read or write."""
    axes = [a for a in ("embed", "ffn", "v") if a in growth.maps and growth.axes[a].grows]
    return {a: (growth.axes[a].large, _distinct(growth, large, growth.axes[a])) for a in axes}


def _distinct(growth: Growth, large: nn.Module, axis: Axis) -> int:
    rng = torch.Generator().manual_seed(0)
    marks = []  # random projections of every slice that belongs to a unit
    for name, p in large.named_parameters():
        row = growth.architecture.lookup(name)
        if row is None or row[1] not in (None, 0):
            continue
        for d, terms in enumerate(parse(row[2])):
            offset = 0
            for term in terms:
                size = growth.axes[term.axis].large if term.axis in growth.axes else p.shape[d]
                if term.axis == axis.name:
                    part = p.detach().narrow(d, offset, size).movedim(d, 0).reshape(size, -1).double().cpu()
                    direction = torch.randn(part.shape[1], 1, dtype=torch.float64, generator=rng)
                    marks.append(part @ direction / (part.norm() + 1e-30))
                offset += size
    if not marks:
        return axis.large
    return len(torch.unique(torch.cat(marks, 1).mul(1e6).round(), dim=0))
