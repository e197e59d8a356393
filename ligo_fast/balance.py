"""Who computes which rows of the first products, so that all processes of a team have as much to do.

Rows r of a sharded parameter are Y[r] = (U[r] X) V^T, and of U = [I; C] only the rows of new units need a
product. `fully_shard` gives these to the last ranks: of BERT's growth from (6, 512) to (12, 768) the second
of two processes has 73% of one process's FLOPs, the first 36%. A row of P = U[r] X is 2 o1 i1 FLOPs a layer
and i1 values: other ranks can compute some and send them (`lend`). In the pull-back rows of Q = Zg V, of the
same size, go the other way, and who receives them adds Q X^T, as many FLOPs, to its own dC.

What is worth most FLOPs per byte goes first, so that little is sent: of the example above three quarters of
the rows of ffn's new units, 9.5 MB, leave each process 55% of one's FLOPs. The sum is more than 100%, as the
products' best order for a whole parameter is not that for its rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .maps import is_learned
from .order import Maps, first, is_width_first, rows_first
from .plan import Piece
from .sharded import Part
from .team import Team

FLOPS_PER_BYTE = 128  # from here on a row is computed elsewhere: a core does 100 GFLOP/s, loopback 1 GB/s
SLOWER = 0.5  # Q is written over Zg, a block at a time: it takes half as long again as other products
FEWEST_FLOPS = 1e8  # that make a message worth sending: about a millisecond


@dataclass(frozen=True)
class Offer:
    """Rows of a piece's first map, start to stop of the whole map, that another process may compute.

    Attributes:
        flop, nbytes: of one row, over all source layers. flip: the first map is that of the columns.
    """

    piece: int
    start: int
    stop: int
    flop: float
    nbytes: float
    flip: bool


@dataclass(frozen=True)
class Task:
    """Rows that the process at place `helper` of the team computes for the one at place `owner`."""

    tag: int
    piece: int
    start: int
    stop: int
    flip: bool
    owner: int
    helper: int


def sides(piece: Piece, flip: bool) -> tuple[Maps, Maps]:
    """The first map and the second."""
    return (piece.cols, piece.rows) if flip else (piece.rows, piece.cols)


def offer_of(number: int, part: Part, pulling: bool, dtype: torch.dtype) -> Offer | None:
    """What a process offers of its part of a piece; None for what nobody else can, or should, compute."""
    piece = part.piece
    if piece is None or not is_width_first(piece.depth, piece.rows, piece.cols, piece.order):
        return None
    flip = not rows_first(len(piece.small), piece.rows, piece.cols)
    maps = sides(part.whole, flip)
    m, v = map(first, maps)
    a, b = part.cols if flip else part.rows
    start = max(a, m.selected)
    if start >= b or m.grain != 1 or (pulling and not any(map(is_learned, m.factors().values()))):
        return None
    n, i1 = len(piece.small), v.shape[1]
    flop, nbytes = m.flops(n * i1) / (m.shape[0] - m.selected), n * i1 * dtype.itemsize
    return Offer(number, start, b, flop, nbytes, flip) if flop >= FLOPS_PER_BYTE * nbytes else None


def load_of(piece: Piece, pulling: bool, grown: bool) -> float:
    """What a piece takes, in FLOPs at the rate of the large products."""
    load = float(piece.flops(pulling, grown and not piece.keep))
    if pulling:
        u, v = first(piece.rows), first(piece.cols)
        n = len(piece.small)
        u, v = (u, v) if rows_first(n, u, v) else (v, u)
        load += SLOWER * v.flops(n * (u.shape[0] - u.fixed))  # Q
    return load


def divide(loads: Sequence[float], offers: Sequence[Sequence[Offer]]) -> list[Task]:
    """Tasks after which the loads, in FLOPs by rank, are as even as the offers of the ranks allow."""
    left, mean, tasks = list(loads), sum(loads) / len(loads), list[Task]()
    every = [(offer, rank) for rank, some in enumerate(offers) for offer in some]
    for offer, owner in sorted(every, key=lambda e: (-e[0].flop / e[0].nbytes, e[0].piece, e[1])):
        stop = offer.stop
        while stop > offer.start:
            helper = min(range(len(left)), key=left.__getitem__)
            rows = int(min(left[owner] - mean, mean - left[helper]) / offer.flop)
            rows = min(rows, stop - offer.start)
            if not rows or rows * offer.flop < FEWEST_FLOPS:
                break
            tasks.append(Task(len(tasks), offer.piece, stop - rows, stop, offer.flip, owner, helper))
            left[owner] -= rows * offer.flop
            left[helper] += rows * offer.flop
            stop -= rows
    return tasks


def balance(team: Team, parts: Sequence[Part], pulling: bool, dtype: torch.dtype, grown: bool) -> list[Task]:
    """The tasks of a team, the same list on all of its processes, which call this together.

    Args:
        parts: what this process does. grown: whether the pull-back reads the grown weights.
    """
    load = sum(load_of(p.piece, pulling, grown) for p in parts if p.piece is not None)
    offers = [o for n, p in enumerate(parts) if (o := offer_of(n, p, pulling, dtype)) is not None]
    said = [json.loads(t) for t in team.texts(json.dumps([load, [list(vars(o).values()) for o in offers]]))]
    return divide([load for load, _ in said], [[Offer(*o) for o in some] for _, some in said])
