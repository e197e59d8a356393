"""`grow_optimizer`: the small model's optimizer state, grown with the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import GrowthError
from ..maps import Identity
from ..models.modes import no_modes
from ..plan import Piece
from ..processes.dtensors import reshard
from ..processes.team import together
from ..tensors import grow_tensors
from .bias_correction import longest_past
from .state_maps import mixes, moment_pieces, squared, whole

if TYPE_CHECKING:
    from ..operator import GrowthOperator

POLICIES = ("keep", "gradient", "map", "fresh")
# what is averaged, and the power of the gradient that it averages
ADAM = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
SGD = {"momentum_buffer": 1}


def grow_optimizer(
    op: GrowthOperator,
    small_opt: torch.optim.Optimizer,
    large_opt: torch.optim.Optimizer,
    policy: str = "keep",
) -> None:
    """Give the large model's optimizer the moments that the small model's has, grown as the model was.

    For torch's Adam and AdamW (amsgrad, foreach, fused, capturable) and SGD with momentum. Parameters are
    matched by the models' names; groups, their order and their options are each optimizer's own. A parameter
    without a past (frozen or never stepped in the small model, or left to the target's own values) gets no
    state: torch makes it at its first step. Any state that the large model's parameters had is replaced.

    Args:
        op: what grew the large model, as `apply_` or `learn` left it.
        small_opt: after at least one step, or with a loaded state; not changed.
        large_opt: over parameters of `op.large`.
        policy: how first moments grow; second moments grow by the square of every entry of the same maps.
            "keep": old entries keep theirs, the rest is zero (MSG, Yao et al., ICLR 2024). The default,
            which did best for copied units (docs/optimizer-state.md).
            "gradient": as gradients do when growth keeps the function (see `state_maps`); exact for
            whole multiples of the width (Staged Training, Shen et al., ICML 2022, halves m and quarters v).
            "map": as the weights do (StackBERT, Gong et al., ICML 2019, copies the moments with the layers).
            "fresh": nothing is carried over.

    Raises:
        GrowthError: for another optimizer or model, missing or misshapen state; `large_opt` is as it was.
    """
    small_opt, large_opt = _inner(small_opt), _inner(large_opt)
    with no_modes(op.device), torch.no_grad(), together(op.team):
        new, large = _new_state(op, small_opt, large_opt, policy)
    for name, member in large.items():
        large_opt.state.pop(member.parameter, None)
        if name in new:
            large_opt.state[member.parameter] = new[name]


def _new_state(
    op: GrowthOperator, small_opt: torch.optim.Optimizer, large_opt: torch.optim.Optimizer, policy: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Member]]:
    """The grown state by parameter, and the large optimizer's parameters."""
    if policy not in POLICIES:
        raise GrowthError(f"policy={policy!r} is none of {', '.join(map(repr, POLICIES))}")
    if op.holder is not None:
        raise GrowthError("every rank needs the whole small model and its optimizer's state")
    if op.streams:
        raise GrowthError("an optimizer's state grows where both models are: move the small one there")
    reshard(op.large)
    powers = _powers(small_opt, large_opt)
    small, large = _members(op.small, small_opt, "small"), _members(op.large, large_opt, "large")
    new: dict[str, dict[str, Tensor]] = {}
    if policy != "fresh":
        pasts = {name: past for name, m in small.items() if (past := _read(name, m, small_opt, powers))}
        if not pasts:
            raise GrowthError(
                f"the small model's {type(small_opt).__name__} has not made a step yet: no state"
            )
        new = _grown(op, policy, powers, pasts, large)
    return new, large


@dataclass(frozen=True)
class Member:
    """A parameter and its group in an optimizer."""

    parameter: nn.Parameter
    group: dict[str, Any]

    @property
    def betas(self) -> tuple[float, float] | None:
        """Adam's; None for SGD."""
        if "betas" not in self.group:
            return None
        beta1, beta2 = self.group["betas"]
        return float(beta1), float(beta2)

    def correction(self, steps: float, power: int) -> float:
        """What Adam divides an average over so many steps by: 1 - beta^steps; 1 for SGD."""
        return 1.0 if self.betas is None else 1.0 - self.betas[power - 1] ** steps

    def keeps(self, key: str) -> bool:
        """Whether the optimizer has this average under its group's options."""
        if key == "max_exp_avg_sq":
            return bool(self.group["amsgrad"])
        return key != "momentum_buffer" or self.group["momentum"] != 0


@dataclass(frozen=True)
class Past:
    """One small parameter's state: its averages, and how many steps they count (0 for SGD)."""

    member: Member
    averages: dict[str, Tensor]
    steps: float


@dataclass
class Family:
    """One parameter over all layers."""

    small: list[str]
    members: dict[str, Member] = field(default_factory=dict)  # large ones that have a past, by name
    steps: float = 0.0  # what the grown averages count as
    whole: bool = True  # no entry is new
    mixes: bool = False  # an entry may be a sum of several old ones


def _inner(opt: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside a wrapper that is one itself (accelerate's)."""
    inner = getattr(opt, "optimizer", None)
    return _inner(inner) if isinstance(inner, torch.optim.Optimizer) else opt


def _powers(small: torch.optim.Optimizer, large: torch.optim.Optimizer) -> dict[str, int]:
    """The averages that both optimizers keep."""
    for kinds, powers in (((torch.optim.Adam, torch.optim.AdamW), ADAM), ((torch.optim.SGD,), SGD)):
        if isinstance(small, kinds) and isinstance(large, kinds):
            return powers
    raise GrowthError(
        f"the state of {type(small).__name__} cannot become that of {type(large).__name__}: both must be "
        "torch's Adam or AdamW, or both its SGD"
    )


def _members(model: nn.Module, opt: torch.optim.Optimizer, which: str) -> dict[str, Member]:
    """The model's parameters in an optimizer, by name; a tied one once."""
    names = {id(p): name for name, p in model.named_parameters()}
    pairs = [(p, group) for group in opt.param_groups for p in group["params"]]
    if strange := [p for p, _ in pairs if id(p) not in names]:
        raise GrowthError(
            f"{len(strange)} of the {len(pairs)} parameters of the {which} model's optimizer are not that "
            f"model's; the first has shape {list(strange[0].shape)}"
        )
    return {names[id(p)]: Member(p, group) for p, group in pairs}


def _read(name: str, member: Member, opt: torch.optim.Optimizer, powers: dict[str, int]) -> Past | None:
    """A small parameter's state, checked; None when it has none."""
    state = {k: v for k, v in opt.state.get(member.parameter, {}).items() if v is not None}
    if not state:
        return None
    p, kind = member.parameter, type(opt).__name__
    required = ["step", "exp_avg", "exp_avg_sq"] if powers is ADAM else ["momentum_buffer"]
    if odd := sorted(state.keys() - powers.keys() - set(required)):
        raise GrowthError(f"parameter {name}: how {odd[0]} of {kind} grows is not known")
    if missing := [key for key in required if key not in state]:
        raise GrowthError(f"parameter {name}: the state of {kind} has no {missing[0]}")
    averages: dict[str, Tensor] = {key: state[key] for key in powers if key in state}
    for key, t in averages.items():
        if not t.is_floating_point():
            raise GrowthError(f"parameter {name}: how {key} of {t.dtype} grows is not known")
        if t.shape != p.shape or t.device != p.device:
            raise GrowthError(
                f"parameter {name}: {key} is {list(t.shape)} on {t.device}, the parameter {list(p.shape)} on "
                f"{p.device}"
            )
        if not bool((finite := torch.isfinite(t)).all()):
            bad = int((~finite).sum())
            raise GrowthError(f"parameter {name}: {key} has {bad} values that are NaN or infinite")
        if t.stride() != p.stride():  # pieces see it through the parameter's layout
            averages[key] = torch.empty_like(p, dtype=t.dtype).copy_(t)
    steps = float(state.get("step", 0))
    return None if powers is ADAM and steps < 1 else Past(member, averages, steps)


def _grown(
    op: GrowthOperator,
    policy: str,
    powers: dict[str, int],
    pasts: dict[str, Past],
    large: dict[str, Member],
) -> dict[str, dict[str, Tensor]]:
    """The new state of every large parameter that has a past, by name."""
    pieces = moment_pieces(op, policy)
    families = _families(pieces, pasts, large)
    pieces = [piece for piece in pieces if tuple(piece.large) in families]
    maps = {1: pieces, 2: squared(pieces)}
    old, new = (dict(model.named_parameters()) for model in (op.small, op.large))
    state: dict[str, dict[str, Tensor]] = {n: {} for f in families.values() for n in f.members}
    jobs, sources, outs = list[Piece](), dict[str, Tensor](), dict[str, Tensor]()
    for key, power in powers.items():
        if not any(member.keeps(key) for f in families.values() for member in f.members.values()):
            continue
        averages = {n: torch.zeros_like(old[n]) for f in families.values() for n in f.small if n not in pasts}
        for family in families.values():
            averages |= _sources(family, pasts, key, power)
        sources |= {f"{key}/{n}": t for n, t in averages.items()}
        outs |= {f"{key}/{n}": torch.zeros_like(new[n]) for piece in pieces for n in piece.large}
        jobs += [_under(key, piece) for piece in maps[power]]
    grow_tensors(jobs, sources, outs, op.dtype)
    for family in families.values():
        for n, member in family.members.items():
            state[n] |= {key: outs[f"{key}/{n}"] for key in powers if member.keeps(key)}
    for family in families.values() if powers is ADAM else ():
        for n, member in family.members.items():
            state[n]["step"] = _step(family.steps, member)
            if family.mixes:
                _bound(state[n], member, family.steps)
    return {n: s for n, s in state.items() if s}


def _under(key: str, piece: Piece) -> Piece:
    """The piece over the parameters' averages: one call grows them all."""
    return replace(
        piece, small=[f"{key}/{n}" for n in piece.small], large=[f"{key}/{n}" for n in piece.large]
    )


def _families(
    pieces: Sequence[Piece], pasts: dict[str, Past], large: dict[str, Member]
) -> dict[tuple[str, ...], Family]:
    """The families that have a past, by the names of their large parameters."""
    families: dict[tuple[str, ...], Family] = {}
    for piece in pieces:  # several may write parts of one family
        family = families.setdefault(tuple(piece.large), Family(piece.small))
        family.mixes |= mixes(piece)
        family.whole &= whole(piece)
        depth = (piece.depth or Identity(1)).dense()
        for name, row in zip(piece.large, depth.tolist(), strict=True):
            if name in large and any(d and n in pasts for d, n in zip(row, piece.small, strict=True)):
                family.members[name] = large[name]
    for family in families.values():
        several = {member.betas for member in family.members.values()}
        if len(several) > 1:
            raise GrowthError(f"parameters {', '.join(family.members)}: the betas of their groups differ")
        family.steps = max((pasts[n].steps for n in family.small if n in pasts), default=0.0)
        if not family.whole and (betas := next(iter(several), None)) is not None:
            family.steps = min(family.steps, longest_past(*betas))
            if family.steps == 0:
                family.members.clear()
    return {key: family for key, family in families.items() if family.members}


def _sources(family: Family, pasts: dict[str, Past], key: str, power: int) -> dict[str, Tensor]:
    """The averages of a family's small parameters, scaled to the steps that they are to count as."""
    sources, member = {}, next(iter(family.members.values()))
    for name in family.small:
        if (past := pasts.get(name)) is not None:
            # for a largest mean square that was not kept, the last is the best there is
            average = past.averages[key if key in past.averages else "exp_avg_sq"]
            ratio = member.correction(family.steps, power) / past.member.correction(past.steps, power)
            sources[name] = average if ratio == 1.0 else average * ratio
    return sources


def _step(steps: float, member: Member) -> Tensor:
    """Adam's step count, of the dtype and on the device where torch keeps it."""
    fused, wide = bool(member.group["fused"]), torch.get_default_dtype() == torch.float64
    device = member.parameter.device if fused or member.group["capturable"] else torch.device("cpu")
    return torch.tensor(steps, dtype=torch.float64 if wide and not fused else torch.float32, device=device)


def _bound(state: dict[str, Tensor], member: Member, steps: float) -> None:
    """No mean square below the square of the mean, where old entries are summed: no step above lr."""
    c1, c2 = member.correction(steps, 1), member.correction(steps, 2)
    mean = state["exp_avg"].to(torch.promote_types(state["exp_avg"].dtype, torch.float32)) / c1
    least = mean.square_().mul_(c2).to(state["exp_avg"].dtype)
    for key in state.keys() & {"exp_avg_sq", "max_exp_avg_sq"}:
        torch.maximum(state[key], least, out=state[key])
