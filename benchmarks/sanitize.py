"""Small plans of every kind of item, run and checked: `python -m benchmarks.sanitize`.

compute-sanitizer runs it. Each case makes a `Plan`, applies it and pulls back, and compares with the float64
oracle (`ligo_fast.reference`). The error may be twice that of the same formula with operands rounded to the
precision of the products (`rounding.py`), three times for gradients. Data are made and checked on the host:
nearly every kernel that a sanitizer sees is ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import rounding, select_cases
from benchmarks.gate import error_of, root_mean_square
from ligo_fast import reference
from ligo_fast.compute.backend_select import why_not_select
from ligo_fast.compute.backend_triton import Job, Plan, unique
from ligo_fast.maps import Dense, Identity, Kron, Map, PrefixDiagonal

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One family: layers, the maps of its rows and columns, how its tensors lie in memory."""

    name: str
    rows: str = "prefix"
    columns: str = "prefix"
    sizes: tuple[int, int, int, int] = (32, 48, 32, 64)  # o1, o2, i1, i2
    layers: tuple[int, int] | None = (2, 3)
    source: str = "float32"
    out: str = "float32"
    precision: str = "ieee"
    transposed: bool = False  # parameters are stored (in, out)
    inside: bool = False  # parameters are blocks of larger ones: q of q | k | v
    missing: bool = False  # one layer has no gradient
    d_sources: bool = False

    def map_of(self, kind: str, old: int, new: int) -> Map:
        """A map of a kind, with random factors on the host."""
        if kind == "identity":
            return Identity(old)
        if kind == "dense":
            return Dense(_random(new, old))
        if kind.startswith("heads"):
            return Kron(self.map_of(kind.replace("heads", "prefix"), old // 4, new // 4), Identity(4))
        return PrefixDiagonal(_random(new - old, old), _random(old) + 1 if kind == "prefix-diag" else None)


def cases() -> Iterator[Case]:
    """Every kernel and every branch of it: alignment, orientation, heads, scales, dtypes, precisions."""
    odd = (13, 29, 7, 19)
    base = [
        Case("prefix"),
        Case("unaligned", sizes=odd),
        Case("dense", "dense", "dense"),
        Case("dense rows, unaligned", "dense", sizes=odd),
        Case("scales", "prefix-diag", "prefix-diag"),
        Case("scales, unaligned", "prefix-diag", "prefix-diag", sizes=odd),
        Case("heads", "heads", "prefix"),
        Case("heads with scales", "prefix", "heads-diag"),
        Case("rows only", "prefix", "identity", (32, 48, 32, 32)),
        Case("columns only", "identity", "prefix", (32, 32, 16, 64)),
        Case("layers only", "identity", "identity", (16, 16, 48, 48)),
        Case("transposed", transposed=True),
        Case("transposed, unaligned", "prefix-diag", sizes=odd, transposed=True),
        Case("blocks of a parameter", inside=True),
        Case("vector", "prefix", "identity", (32, 48, 1, 1)),
        Case("vector, unaligned", "prefix-diag", "identity", (13, 29, 1, 1)),
        Case("no layers", layers=None),
        Case("many layers", "prefix", "identity", (8, 12, 16, 16), (17, 33)),
        Case("a gradient is missing", missing=True),
        Case("gradients of the sources", d_sources=True),
    ]
    yield from base
    for case in (base[0], base[1], base[4], base[6], base[11]):
        yield replace(case, name=f"{case.name}, tf32", precision="tf32")
        for source, out in (("bfloat16", "bfloat16"), ("float32", "float32")):
            precision = "bf16"
            name = f"{case.name}, bf16 from {source}"
            yield replace(case, name=name, precision=precision, source=source, out=out)
        yield replace(
            case, name=f"{case.name}, tf32 from float16", precision="tf32", source="float16", out="float16"
        )


def _random(*shape: int) -> Tensor:
    return torch.randn(shape)


class Check:
    """A case as tensors on the host, its oracle and its yardstick."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        o1, o2, i1, i2 = case.sizes
        old, new = case.layers or (1, 1)
        self.case = case
        self.rows, self.columns = case.map_of(case.rows, o1, o2), case.map_of(case.columns, i1, i2)
        self.depth = Dense(_random(new, old)) if case.layers else None
        self.stack = _random(old, o1, i1).to(DTYPES[case.source])
        self.grads = _random(new, o2, i2).to(DTYPES[case.out])
        if case.missing:
            self.grads[1] = 0

    def maps(self) -> list[Map]:
        return [m for m in (self.depth, self.rows, self.columns) if m is not None]

    def expected(self, dtype: torch.dtype, precision: str | None) -> list[Tensor]:
        """Outs, gradients of the factors and of the sources, by autograd; `precision` None is the oracle."""
        leaves: list[Tensor] = []

        def leaf(t: Tensor) -> Tensor:
            leaves.append(t.to(dtype).clone().requires_grad_())
            return leaves[-1]

        def dense(m: Map) -> Tensor:
            own = m.replace({name: leaf(t) for name, t in m.factors().items()})
            return own.left(torch.eye(m.shape[1], dtype=dtype))

        depth = None if self.depth is None else dense(self.depth)
        rows, columns = dense(self.rows), dense(self.columns)
        stack = leaf(self.stack)
        if precision is None:
            outs = reference.grow(stack, depth, rows, columns)
        else:
            multiply = rounding.product(precision)
            mixed = stack if depth is None else multiply(depth, stack.flatten(1)).view(-1, *stack.shape[1:])
            outs = torch.stack([multiply(multiply(rows, x), columns.t()) for x in mixed])
        outs.backward(self.grads.to(outs.dtype))
        outs = outs.detach() if precision is None else outs.detach().to(self.grads.dtype)
        grads = [t.grad if t.grad is not None else torch.zeros_like(t) for t in leaves]
        return [outs, *grads]

    def measured(self, device: torch.device) -> list[Tensor]:
        """The same from a plan; outs and workspaces hold no number before."""
        factors: list[Tensor] = []

        def moved(t: Tensor) -> Tensor:
            factors.append(t.to(device))
            return factors[-1]

        for m in self.maps():
            m.transform(moved)
        stack, (new, o2, i2) = self.stack, self.grads.shape
        sources = [self._laid_out(w, device) for w in stack]
        outs = [
            self._laid_out(torch.full((o2, i2), torch.nan, dtype=self.grads.dtype), device)
            for _ in range(new)
        ]
        grads: list[Any] = [self._laid_out(g, device) for g in self.grads]
        d_sources = [torch.zeros(w.shape).to(device) for w in stack] if self.case.d_sources else []
        job = Job(
            self.depth, self.rows, self.columns, [w for _, w in sources], [y for _, y in outs],
            [b for b, _ in sources], [b for b, _ in outs],
        )  # fmt: skip
        plan = Plan([job], factors, self.case.precision, d_sources=[d_sources] if d_sources else ())
        if plan.rejected:
            raise RuntimeError(f"left to torch: {plan.rejected[0]}")
        plan.apply()
        factor_grads = [torch.zeros(t.shape).to(device) for t in factors]
        given = [None if self.case.missing and n == 1 else base for n, (base, _) in enumerate(grads)]
        assert plan.bind(job.source_bases, unique(job.factors()), list(job.out_bases), given)
        plan.pullback(factor_grads, d_sources)
        results = [torch.stack([y.cpu() for _, y in outs]), *(t.cpu() for t in factor_grads)]
        return [*results, torch.stack([t.cpu() for t in d_sources])] if d_sources else results

    def _laid_out(self, values: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """A parameter, and the (rows, columns) view of it that holds the values."""
        columns = values.shape[1]
        stored = values.t().contiguous() if self.case.transposed else values
        if self.case.inside:
            stored = torch.cat([torch.zeros_like(stored), stored], 1)
        base = stored.to(device)
        view = base[:, columns:] if self.case.inside else base
        return base, view.t() if self.case.transposed else view

    def faults(self, device: torch.device) -> str:
        """What is wrong, in a line; empty when nothing is."""
        truth, plain = self.expected(torch.float64, None), self.expected(torch.float32, self.case.precision)
        ours = self.measured(device)
        if not self.case.d_sources:
            del truth[-1], plain[-1]
        wrong = []
        for kind, part, allowed in (("outs", slice(1), 2.0), ("gradients", slice(1, None), 3.0)):
            mine, other = (
                root_mean_square([error_of(t, e) for t, e in zip(ts[part], truth[part], strict=True)])
                for ts in (ours, plain)
            )
            if not mine <= allowed * other:
                wrong.append(f"{kind}: error {mine:.2e}, {allowed:.0f} x {other:.2e} allowed")
        return "; ".join(wrong)


def main(arguments: list[str] | None = None) -> int:
    """Run the cases, or one part of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize", description=__doc__)
    parser.add_argument("--part", default="1/1", help="n/m: the n-th of m parts of the cases")
    parser.add_argument("--rehearse", action="store_true", help="a few float32 cases, on the CPU")
    parser.add_argument("--with-csrc", action="store_true", help="not to find csrc built is a failure")
    options = parser.parse_args(arguments)
    number, parts = map(int, options.part.split("/"))
    chosen = list(cases())[number - 1 :: parts]
    device = torch.device("cpu" if options.rehearse else "cuda")
    if options.rehearse:
        chosen = [c for c in chosen if c.name in ("scales, unaligned", "heads", "transposed")]
    failed = 0
    for case in chosen:
        wrong = Check(case).faults(device)
        failed += bool(wrong)
        print(f"{case.name}: {wrong or 'ok'}", flush=True)
    compiled = list(select_cases.cases(device))[number - 1 :: parts]
    if why := why_not_select(device):
        print(f"csrc: {why}")
        failed += options.with_csrc
        compiled = []
    for name, run in compiled:
        wrong = run()
        failed += bool(wrong)
        print(f"{name}: {wrong or 'ok'}", flush=True)
    print(f"{len(chosen) + len(compiled)} cases, {failed} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
