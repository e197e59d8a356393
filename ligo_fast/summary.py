"""An operator in a few lines: what `print(op)` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .axes import PerLayer

if TYPE_CHECKING:
    from .operator import GrowthOperator


def summary(op: GrowthOperator) -> str:
    """Method, axes with their sizes and maps, numbers of parameters and operations."""
    g = op.growth
    lines = [f"method={g.method}, seed={op.seed}, {type(op.small).__name__}"]
    lines += [f"layer: {g.axes['layer'].small} -> {g.axes['layer'].large}"]
    for axis, entry in g.maps.items():
        a, maps = g.axes[axis], entry.maps[0] if isinstance(entry, PerLayer) else entry
        each = f", one per {entry.level} layer" if isinstance(entry, PerLayer) else ""
        kind = f"{type(maps.out).__name__}{' / ' + type(maps.into).__name__ if maps.into else ''}"
        lines.append(f"{axis}: {a.small} -> {a.large}  {kind}{each}")
    counts = [sum(p.numel() for p in m.parameters()) for m in (op, op.small, op.large)]
    lines.append(f"parameters: factors {counts[0]:,}, small {counts[1]:,}, large {counts[2]:,}")
    lines.append(f"GFLOPs: apply {op.flops() / 1e9:.3g}, pullback {op.flops('pullback') / 1e9:.3g}")
    return "\n".join(lines)
