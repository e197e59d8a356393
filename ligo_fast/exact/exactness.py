"""The rules of exactness, checked by arithmetic: which of them do the maps of a growth keep?

The rules (Net2Net; LEMON; Gesmundo & Maile), each probed in float64 with random vectors through the maps:
an axis that arrives as S x must be read with V so that V^T S = I; attention on grown heads, the feed-forward
nonlinearity and the norm must commute with the maps; each new layer must add zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import AxisMaps, PerLayer
from ..growth import Growth, depth_matrix
from ..maps import Map, Selection
from ..models.layer_types import layer_types
from ..models.tables import parse, writes

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@dataclass(frozen=True)
class Rule:
    """One condition of exactness: its largest error by arithmetic, and what breaks if it does not hold.

    `tolerance` allows for the rounding of the factors, which have the models' precision.
    """

    name: str
    error: float
    why: str
    tolerance: float = 0.0

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance


def axis_errors(growth: Growth) -> dict[str, float]:
    """max |V^T U x - x| for every growing axis that is produced and summed over."""
    consumed = {
        t.axis
        for d in growth.architecture.parameters.values()
        for dim in parse(d)
        for t in dim
        if t.role == "in"
    }
    errors = {}
    for axis in growth.maps:
        if axis in consumed and growth.axes[axis].grows:
            x = _probe(growth.axes[axis].small)
            errors[axis] = max(
                _error(_read(m, _cast(m.role("shift")).left(x)), x) for m in _each(growth, axis)
            )
    return errors


def rules(growth: Growth, small: nn.Module, large: nn.Module) -> list[Rule]:
    """Every condition that a growth between two models has to meet."""
    architecture, found = growth.architecture, _departures(growth)
    eps = [architecture.read_eps(m) for m in (small, large)]
    for axis, error in axis_errors(growth).items():
        found.append(
            Rule(f"V^T U = I on {axis}", error, "what consumers sum is not what the small model summed")
        )
    if "q" in growth.maps and any(growth.axes[a].grows for a in ("q", "k", "v") if a in growth.maps):
        found.append(Rule("attention", _attention(growth, eps), "a grown head is not a copy of a small one"))
    if "ffn" in growth.maps and growth.axes["ffn"].grows:
        x = _probe(growth.axes["ffn"].small)
        error = max(
            _error(_read(m, F.gelu(u) * u), F.gelu(x) * x)
            for m in _each(growth, "ffn")
            for u in (_cast(m.out).left(x),)
        )
        found.append(Rule("nonlinearity", error, "rows of U must select units or be zero"))
    if growth.axes["embed"].grows:
        found += _norm_rules(growth, eps)
    found += _layer_rules(growth, small, large)
    if growth.axes["layer"].grows or growth.pair[1].reorders:
        why = "new layers must add zero and old ones come in order"
        found.append(Rule("new layers add zero", _depth(growth), why))
        if architecture.post_norm and growth.axes["layer"].grows:
            found.append(Rule("pre-norm depth", 1.0, "a post-norm layer that adds zero still normalises"))
    return [replace(rule, tolerance=TOLERANCE[growth.dtype]) for rule in found]


def _cast(m: Map) -> Map:
    return m.replace({k: t.detach().double().cpu() for k, t in m.factors().items()})


def _each(growth: Growth, axis: str) -> list[AxisMaps]:
    entry = growth.maps[axis]
    return entry.maps if isinstance(entry, PerLayer) else [entry]


def _probe(n: int, columns: int = 8) -> Tensor:
    return torch.randn(n, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


def _error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _read(maps: AxisMaps, y: Tensor) -> Tensor:
    return _cast(maps.role("in")).left_adjoint(y)


def _departures(growth: Growth) -> list[Rule]:
    """What a method writes that its maps do not say: always a change of the function."""
    width, rules = growth.pair[0], []
    grows = any(growth.axes[axis].grows for axis in growth.maps)
    if not width.writes:
        rules.append(Rule("growth", 1.0, "nothing is taken from the small model"))
    elif width.fresh and grows:
        rules.append(Rule("new units", 1.0, "they keep the target's own values and add something"))
    elif width.next_layer and grows:
        rules.append(Rule("new units", 1.0, "they are those of the next source layer"))
    return rules


def _attention(growth: Growth, eps: list[float]) -> float:
    """Attention of random q, k, v, read back from the grown heads."""
    normed = any(f.tag == "normed" for f in growth.axes["q"].factors)
    context = "context" if "context" in growth.maps else "v"
    hd1, hd2 = growth.axes["head_dim"].small, growth.axes["head_dim"].large
    time = 5
    x = {a: _probe(growth.axes[a].small, time) for a in ("q", "k", "v")}

    def attend(qkv: list[Tensor], hd: int, eps: float) -> Tensor:
        q, k, v = (t.view(-1, hd, time).transpose(1, 2) for t in qkv)  # (heads, time, hd)
        if normed:
            q, k = (t / (t.square().mean(-1, keepdim=True) + eps).sqrt() for t in (q, k))
        k, v = (t.repeat_interleave(q.shape[0] // k.shape[0], 0) for t in (k, v))
        y = torch.softmax(q @ k.transpose(1, 2) / hd**0.5, -1) @ v
        return y.transpose(1, 2).reshape(-1, time)

    want, worst = attend([x["q"], x["k"], x["v"]], hd1, eps[0]), 0.0
    layers = max(len(_each(growth, a)) for a in ("q", "k", "v"))
    for layer in range(layers):
        maps = {
            a: each[min(layer, len(each) - 1)]
            for a in ("q", "k", "v", context)
            for each in (_each(growth, a),)
        }
        grown = attend([_cast(maps[a].out).left(x[a]) for a in ("q", "k", "v")], hd2, eps[1])
        worst = max(worst, _error(_read(maps[context], grown), want))
    return worst


def _norm_rules(growth: Growth, eps: list[float]) -> list[Rule]:
    """The norm of a grown residual stream, as its consumers, the residual sum or a tied head read it."""
    architecture = growth.architecture
    maps = _each(growth, "embed")[0]
    n1, n2 = growth.axes["embed"].small, growth.axes["embed"].large
    x, gain, shift = _probe(n1), _probe(n1 + 1, 1)[:n1].abs() + 0.5, _probe(n1 + 2, 1)[:n1]
    if architecture.norm == "rms":
        shift = torch.zeros_like(shift)

    def norm(y: Tensor, g: Tensor, s: Tensor, e: float) -> Tensor:
        centred = y - y.mean(0) if architecture.norm == "layer" else y
        return g * centred / (centred.square().mean(0) + e).sqrt() + s

    def grown(final: str, e: float) -> Tensor:
        g, s = (
            _cast(maps.role(r + final, growth.tied)).left(t) for r, t in (("gain", gain), ("shift", shift))
        )
        return norm(_cast(maps.out).left(x), g, s, e)

    want = norm(x, gain, shift, 0.0)
    kind = "LayerNorm" if architecture.norm == "layer" else "RMSNorm"
    if architecture.post_norm:
        rules = [
            Rule("post-norm stream", _error(grown("", 0.0), _cast(maps.out).left(want)),
                 f"{kind}'s output is the residual stream itself and must arrive as U x"),
        ]  # fmt: skip
    else:
        rules = [Rule("norm statistics", _error(_read(maps, grown("", 0.0)), want),
                      f"{kind} over {n2} units does not see what it saw over {n1}")]  # fmt: skip
    if architecture.eps:
        ratio = eps[0] * maps.eps_scale
        rules.append(Rule("norm eps", abs(eps[1] - ratio) / max(ratio, 1e-30) if ratio else eps[1],
                          f"{architecture.eps} is {eps[1]:g}, exactness asks for {ratio:g}"))  # fmt: skip
    if growth.tied:
        read = _cast(maps.out).left_adjoint(grown("+", 0.0))
        rules.append(
            Rule("tied head", _error(read, want), "the head reads with U, the last norm must carry V / U")
        )
    return rules


def _layer_rules(growth: Growth, small: nn.Module, large: nn.Module) -> list[Rule]:
    """What differs from layer to layer by the configs, not by the weights, must stay with the weights."""
    architecture, made = growth.architecture, _made_of(growth)
    configs = [architecture.config(m) for m in (small, large)]
    found, counts = [], (growth.axes["layer"].small, growth.axes["layer"].large)
    types = [layer_types(c) or ["full_attention"] * n for c, n in zip(configs, counts, strict=True)]
    if {*types[0], *types[1]} != {"full_attention"} and [len(t) for t in types] == [*counts]:
        odd = [(l2, l1) for l2, l1 in made if types[1][l2] != types[0][l1]]
        why = "".join(
            f"layer {l2} has {types[1][l2]}, the source's layer {l1} it is made of {types[0][l1]}"
            for l2, l1 in odd[:1]
        )
        found.append(Rule("layer types", float(len(odd)), why))
    if (divisor := architecture.divisor) is not None and "head_dim" in growth.axes:
        # the maps make up for the root of head_dim, and for nothing else
        root = (growth.axes["head_dim"].large / growth.axes["head_dim"].small) ** 0.5
        ratios = [divisor(configs[1], l2) / divisor(configs[0], l1) / root for l2, l1 in made]
        error = max((abs(r - 1) for r in ratios), default=0.0)
        why = "the config divides a grown layer's attention scores by another number"
        found.append(Rule("attention scores", error, why))
    return found


def _made_of(growth: Growth) -> list[tuple[int, int]]:
    """(large layer, small layer it takes something from), of large layers that add something."""
    matrices = {name: depth_matrix(m).cpu() != 0 for name, m in growth.depth.items()}
    writers = [d for name, d in matrices.items() if name in _writers(growth)]
    if not writers:
        return []
    adds = torch.stack(writers).any(0).any(1)
    taken = torch.stack([*matrices.values()]).any(0) & adds[:, None]
    return [(l2, l1) for l2, l1 in taken.nonzero().tolist()]


def _writers(growth: Growth) -> set[str]:
    """The families that write to the residual stream."""
    return {n for n, dims in growth.architecture.parameters.items() if writes(parse(dims))}


def _depth(growth: Growth) -> float:
    """0 when old layers come once and in order and every new one writes zero to the residual stream."""
    writers = _writers(growth)
    matrices = {name: depth_matrix(m).cpu() for name, m in growth.depth.items()}
    written = next((d for name, d in matrices.items() if name in writers), None)
    if written is None:
        return 0.0
    old = written.abs().sum(1) > 0
    want, worst = torch.eye(growth.axes["layer"].small, dtype=torch.float64), 0.0
    for name, d in matrices.items():
        if name in writers:
            m = growth.depth[name]  # a layer left as the target has it writes what it likes
            if isinstance(m, Selection) and bool((m.index < 0).any()):
                worst = 1.0
            worst = max(worst, float(d[~old].abs().max()) if bool((~old).any()) else 0.0)
        worst = max(worst, _error(d[old], want) if int(old.sum()) == len(want) else 1.0)
    return worst
