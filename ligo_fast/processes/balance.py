"""Who computes which part of the first products, so that all processes of a team have as much to do.

Rows r of a sharded parameter are Y[r] = (U[r] X) V^T, and of U = [I; C] only the rows of new units need a
product. `fully_shard` gives these to the last ranks: of BERT's growth from (6, 512) to (12, 768) the second
of two processes has 73% of one process's FLOPs, the first 36%. Two things are done about it.

*Products that several need.* A matrix that grows more in columns is U (X V^T), where one process makes X V^T
once. Its rows of old units k are Y's own, before layers are mixed, and who has new units needs all of them:
each process makes those of its own old units and sends them (`shared`). In the pull-back it sends them again,
read off the grown weights, and is sent what the new units add to their gradient Q before it multiplies by X.

*Rows for others.* A row of P = U[r] X is 2 o1 i1 FLOPs a layer and i1 values: other ranks can compute some
and send them (`divide`). In the pull-back rows of Q = Zg V, of the same size, go the other way, and who
receives them adds Q X^T, as many FLOPs, to its own dC. What is worth most FLOPs per byte goes first, so that
little is sent.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..compute.order import Maps, first, is_width_first, rows_first
from ..maps import Map, is_learned
from ..plan import Piece
from .dtensors import Window
from .restrict import restrict
from .sharded import Part
from .team import Team

FLOPS_PER_BYTE = 128  # from here on a row is computed elsewhere: a core does 100 GFLOP/s, loopback 1 GB/s
SECOND = 0.3  # products by the second map, of fewer rows and into what is larger, take so much longer
SLOWER = 1.0  # and Q, which is written over Zg a block at a time
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
    """Rows of P that the process at place `helper` of the team computes for the one at place `owner`.

    Attributes:
        start, stop: the rows, of the whole first map. flip: the first map is that of the columns.
        columns: which of P, old units of the second map; None for all. With them it is a shared product,
            owner and helper may be one process, and the pull-back is sent P, too.
    """

    tag: int
    piece: int
    start: int
    stop: int
    flip: bool
    owner: int
    helper: int
    columns: Window | None = None


def sides(piece: Piece, flip: bool) -> tuple[Maps, Maps]:
    """The first map and the second."""
    return (piece.cols, piece.rows) if flip else (piece.rows, piece.cols)


def _learns(m: Map) -> bool:
    return any(map(is_learned, m.factors().values()))


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
    if start >= b or m.grain != 1 or (pulling and not _learns(m)):
        return None
    n, i1 = len(piece.small), v.shape[1]
    flop, nbytes = m.flops(n * i1) / (m.shape[0] - m.selected), n * i1 * dtype.itemsize
    return Offer(number, start, b, flop, nbytes, flip) if flop >= FLOPS_PER_BYTE * nbytes else None


def load_of(piece: Piece, pulling: bool, grown: bool) -> float:
    """What a piece takes, in FLOPs at the rate of the large products."""
    u, v = first(piece.rows), first(piece.cols)
    n = len(piece.small)
    u, v = (u, v) if rows_first(n, u, v) else (v, u)
    load = piece.flops(pulling, grown and not piece.keep) + SECOND * v.flops(n * u.shape[0])
    return load + SLOWER * v.flops(n * (u.shape[0] - u.fixed)) if pulling else load


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


def shared(
    number: int, whole: Piece, windows: Sequence[tuple[Window, Window]], pulling: bool, nbytes: int
) -> list[Task]:
    """Who makes which columns of the first product of a piece for whom, where that saves FLOPs; else nothing.

    Args:
        windows: of its rows and its columns, by rank. nbytes: of a value.
    """
    n, slot = len(whole.small), whole.small_slot
    if not is_width_first(whole.depth, whole.rows, whole.cols, whole.order):
        return []
    flip = not rows_first(n, whole.rows, whole.cols)
    m, s = map(first, sides(whole, flip))
    old, new = s.shape[1], m.shape[0] - m.selected
    if s.kept < old or not new or m.grain != 1 or slot.dim not in (None, int(not flip)):
        return []
    if pulling and not _learns(m):
        return []
    across, own = ([w[side] for w in windows] for side in (int(flip), int(not flip)))
    having = [r for r in range(len(windows)) if across[r][0] < across[r][1] and own[r][0] < own[r][1]]
    if any(across[r] != (0, m.shape[0]) for r in having):
        return []
    held = {r: (own[r][0], min(own[r][1], old)) for r in having if own[r][0] < old}
    saved, tasks = 0.0, list[Task]()
    for owner in having:
        a, b = own[owner]
        rest = restrict(s, a, b)
        nearest = sorted(held, key=lambda r: -abs(r - owner))  # last, of some that have the same units
        needed = {held[r]: r for r in nearest} if b > old else {held[owner]: owner}
        ends = [a if b <= old else 0, *itertools.chain(*sorted(needed)), min(b, old)]
        if ends[::2] != ends[1::2]:
            return []
        tasks += [
            Task(0, number, m.selected, m.shape[0], flip, owner, r, c) for c, r in sorted(needed.items())
        ]
        rows_last = rest.flops(n * m.shape[0])
        alone = min(m.flops(n * old) + rows_last, rest.flops(n * m.shape[1]) + m.flops(n * (b - a)))
        saved += alone - rows_last - m.flops(n * columns_of(held.get(owner)))
    sent = sum(columns_of(t.columns) for t in tasks if t.owner != t.helper)
    return tasks if sent and saved >= max(FEWEST_FLOPS, FLOPS_PER_BYTE * sent * new * n * nbytes) else []


def columns_of(window: Window | None) -> int:
    """How many."""
    return 0 if window is None else window[1] - window[0]


def shared_load(part: Part, flip: bool, pulling: bool, grown: bool) -> float:
    """What a piece with a shared product takes, its own columns of that included; see `load_of`."""
    assert part.piece is not None
    n, m = len(part.piece.small), first(sides(part.piece, flip)[0])
    s, (a, b) = first(sides(part.piece, flip)[1]), part.rows if flip else part.cols
    own = m.flops(n * max(min(b, s.shape[1]) - a, 0))
    last = (1 + SECOND) * s.flops(n * m.shape[0])
    if not pulling:
        return own + last
    q = (1 + SLOWER) * s.flops(n * (m.shape[0] - m.fixed))
    return own + last + q + (0 if grown else own + last)


def balance(team: Team, parts: Sequence[Part], pulling: bool, dtype: torch.dtype, grown: bool) -> list[Task]:
    """The tasks of a team, the same list on all of its processes, which call this together.

    Args:
        parts: what this process does. grown: whether the pull-back reads the grown weights.
    """
    every = [json.loads(t) for t in team.texts(json.dumps([(p.rows, p.cols) for p in parts]))]
    windows = [[(tuple(w[n][0]), tuple(w[n][1])) for w in every] for n in range(len(parts))]
    common = [shared(n, p.whole, windows[n], pulling, dtype.itemsize) for n, p in enumerate(parts)]
    load, offers = 0.0, list[Offer]()
    for number, part in enumerate(parts):
        if part.piece is None:
            continue
        if common[number]:
            load += shared_load(part, common[number][0].flip, pulling, grown)
            continue
        load += load_of(part.piece, pulling, grown)
        if (offer := offer_of(number, part, pulling, dtype)) is not None:
            offers.append(offer)
    said = [json.loads(t) for t in team.texts(json.dumps([load, [list(vars(o).values()) for o in offers]]))]
    lent = divide([load for load, _ in said], [[Offer(*o) for o in some] for _, some in said])
    return [replace(t, tag=tag) for tag, t in enumerate([*itertools.chain(*common), *lent])]
