"""The messages of `balance`: parts of a first product that one process computes for another.

To `backend_torch` a piece whose first product comes from elsewhere is one with another map, `Elsewhere`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..compute.blend import Layout, Workspace, combine_, left_inverse
from ..compute.order import Maps, first, per_layer
from ..compute.products import rows_product
from ..maps import Identity, Map
from ..plan import Piece
from .balance import Task, sides
from .dtensors import Window
from .elsewhere import Elsewhere, Values
from .restrict import restrict, stacked
from .sharded import Part
from .team import Team

Rectangle = tuple[int, int, int, Window | None]  # piece, rows, columns of a first product


class Loan:
    """The messages of one call.

    Attributes:
        lent, taken: what this process has made, and what it makes, for itself too.
        pieces: by number, those of this process that have something made.
    """

    pulling: bool

    def __init__(self, team: Team | None, tasks: Sequence[Task], parts: Sequence[Part], like: Tensor) -> None:
        self.team, self.parts, self.like = team, parts, like
        rank = -1 if team is None else team.rank
        self.lent = [t for t in tasks if t.owner == rank]
        self.taken = [t for t in tasks if t.helper == rank]
        self._call = team.count() if team is not None and tasks else 0
        self._waits: dict[tuple[int, bool], Callable[[], None]] = {}
        self._made: dict[Rectangle, Tensor] = {}  # by this process, also for itself
        self._messages = {t.tag: self._stack(t) for t in self.lent if t.helper != rank}
        self._receive([t for t in self.lent if self._arrives(t)])
        self.pieces: dict[int, Piece] = {}

    def begin(
        self,
        sources_of: Callable[[Piece], Sequence[Tensor]],
        grown_of: Callable[[Piece], Sequence[Tensor]] | None = None,
    ) -> None:
        """Make and send the products for others: from the sources, or read off the grown weights."""
        for t in filter(self._arrives, self.taken):
            if (key := _rectangle(t)) not in self._made:
                self._made[key] = self._stack(t)
                if grown_of is None or not self._read(t, grown_of):
                    self._make(t, sources_of(self.parts[t.piece].whole))
            self._send([t], self._made[key])
        for number in dict.fromkeys(t.piece for t in self.lent):  # most FLOPs per byte first
            self.pieces[number] = self._piece(number, [t for t in self.lent if t.piece == number])

    def piece(self, number: int) -> Piece | None:
        """This process's piece, for `backend_torch`."""
        return self.pieces.get(number, self.parts[number].piece)

    def finish(self) -> None:
        """Until all messages have come or gone."""
        for t in (*self.lent, *self.taken):
            self._wait(t, True)
            self._wait(t, False)
        self.pieces.clear()  # their maps hold this object
        self._messages.clear()
        self._made.clear()

    def _arrives(self, task: Task) -> bool:
        """Whether P is sent; else, in the pull-back, only Q is."""
        return not self.pulling or task.columns is not None

    def _make(self, task: Task, sources: Sequence[Tensor]) -> None:
        whole, layout = self.parts[task.piece].whole, Layout(task.flip, self.like, Workspace())
        maps = self._restricted(task, sides(whole, task.flip)[0])
        rows_product(_columns(task, sources), maps, self._made[_rectangle(task)], layout)

    def _read(self, task: Task, grown_of: Callable[[Piece], Sequence[Tensor]]) -> bool:
        """Rows of old units are grown of P alone: P = pinv(D) Y. False where D does not determine it."""
        part = self.parts[task.piece]
        inverse = left_inverse(part.whole.depth)
        if part.piece is None or part.piece.keep or (part.piece.depth is not None and inverse is None):
            return False
        assert task.columns is not None
        a, b = (n - (part.rows if task.flip else part.cols)[0] for n in task.columns)
        rows = slice(task.start, task.stop)
        ys = [y[a:b, rows] if task.flip else y[rows, a:b] for y in grown_of(part.piece)]
        ps = list(_message(task, self._made[_rectangle(task)]))
        if inverse is None:
            ps[0].copy_(ys[0])
        else:
            combine_(ps, inverse, ys)
        return True

    def _stack(self, task: Task) -> Tensor:
        """(L1, rows, columns) of P or Q."""
        whole = self.parts[task.piece].whole
        a, b = task.columns or (0, first(sides(whole, task.flip)[1]).shape[1])
        return Layout(task.flip, self.like, Workspace()).empty(
            len(whole.small), task.stop - task.start, b - a
        )

    def _piece(self, number: int, tasks: Sequence[Task]) -> Piece:
        """With maps that have rows elsewhere."""
        part, flip = self.parts[number], tasks[0].flip
        assert part.piece is not None
        window, own = (part.cols, part.rows) if flip else (part.rows, part.cols)
        second = sides(part.piece, flip)[1]
        piece, shift = replace(part.piece, order="width_first"), 0
        spans: dict[Window, list[Task]] = {}
        for t in sorted(tasks, key=lambda t: t.start):
            spans.setdefault((t.start, t.stop), []).append(t)
        if tasks[0].columns is not None and own[1] <= first(sides(part.whole, flip)[1]).shape[1]:
            # only old units: nothing else of the sources is needed
            slot, at = piece.small_slot, piece.small_slot.start if piece.small_slot.dim is not None else 0
            slot = replace(slot, dim=int(not flip), start=at + own[0], stop=at + own[1])
            piece, second, shift = replace(piece, small_slot=slot), Identity(own[1] - own[0]), own[0]
        layers = []
        for j, m in enumerate(per_layer(sides(part.whole, flip)[0], len(part.whole.small))):
            rows, at = [], window[0]
            for (start, stop), some in spans.items():
                if at < start:
                    rows.append(restrict(m, at, start))
                values = [self._values(t, j, shift) for t in some]
                rows.append(Elsewhere(restrict(m, start, stop), values, self._arrives(some[0])))
                at = stop
            if at < window[1]:
                rows.append(restrict(m, at, window[1]))
            layers.append(stacked(rows))
        return replace(piece, cols=layers, rows=second) if flip else replace(piece, rows=layers, cols=second)

    def _values(self, task: Task, layer: int, shift: int) -> Values:
        tensor = self._given(task)[layer]
        start = 0 if task.columns is None else task.columns[0] - shift
        return Values(start, start + tensor.shape[1], tensor, lambda: self._ready(task))

    def _given(self, task: Task) -> Tensor:
        """Where the owner of a task finds P and puts Q."""
        return self._made[_rectangle(task)] if task.owner == task.helper else self._messages[task.tag]

    def _ready(self, task: Task) -> None:
        """Until P is here, and nobody is still sent what would be written over."""
        if task.owner != task.helper:
            self._wait(task, False)
        elif self.pulling:
            for t in self.taken:
                if _rectangle(t) == _rectangle(task):
                    self._wait(t, True)

    def _wait(self, task: Task, sent: bool) -> None:
        """Until a message has gone or come."""
        if (wait := self._waits.pop((task.tag, sent), None)) is not None:
            wait()

    def _receive(self, tasks: Iterable[Task]) -> None:
        """Begin to."""
        for t in tasks:
            if self.team is not None and t.owner != t.helper:
                message = _message(t, self._messages[t.tag])
                self._waits[t.tag, False] = self.team.receive(message, self._other(t), self._tag(t))

    def _send(self, tasks: Iterable[Task], stack: Tensor) -> None:
        """Begin to."""
        for t in tasks:
            if self.team is not None and t.owner != t.helper:
                self._waits[t.tag, True] = self.team.send(_message(t, stack), self._other(t), self._tag(t))

    def _tag(self, task: Task) -> int:
        """Not that of a call before, of which an error may have left messages on their way."""
        return self._call % (1 << 12) << 16 | task.tag

    def _other(self, task: Task) -> int:
        assert self.team is not None
        return task.helper if task.owner == self.team.rank else task.owner

    def _restricted(self, task: Task, maps: Maps) -> list[Map]:
        """The rows of a task, one map for each source layer."""
        count = len(self.parts[task.piece].whole.small)
        return [restrict(m, task.start, task.stop) for m in per_layer(maps, count)]


class ProductLoan(Loan):
    """P = U X: what others need first, and who waits does its other pieces first."""

    pulling = False

    def order(self, numbers: Iterable[int]) -> list[int]:
        """The pieces as they are best done."""
        return sorted(numbers, key=lambda n: n in self.pieces)


class GradientLoan(Loan):
    """dC += Q X^T from Q = Zg V: what others wait for first, what they sent last."""

    pulling = True

    def __init__(self, team: Team | None, tasks: Sequence[Task], parts: Sequence[Part], like: Tensor) -> None:
        super().__init__(team, tasks, parts, like)
        self._messages |= {t.tag: self._stack(t) for t in self.taken if t.owner != t.helper}
        self._receive(self.taken)

    def order(self, numbers: Iterable[int]) -> list[int]:
        """The pieces as they are best done."""
        chosen = list(numbers)
        awaited = dict.fromkeys(t.piece for t in self.lent if t.owner != t.helper)
        return [n for n in awaited if n in chosen] + [n for n in chosen if n not in awaited]

    def send_rows_of(self, number: int, weight: float) -> None:
        """After the pull-back of a piece; `weight` of its gradients in the sum, 0 where it has none."""
        for t in self.lent:
            if t.piece == number:
                self._ready(t)
                stack = self._given(t)
                if weight != 1.0:
                    stack.mul_(weight) if weight else stack.zero_()
                self._send([t], stack)

    def add_taken(
        self, sources_of: Callable[[Piece], Sequence[Tensor]], gradient_of: Callable[[Maps], Any]
    ) -> None:
        """Add others' rows to the gradients, and wait until all is sent."""
        rectangles: dict[Rectangle, list[Task]] = {}
        for t in self.taken:
            rectangles.setdefault(_rectangle(t), []).append(t)
        for tasks in rectangles.values():
            t, whole = tasks[0], self.parts[tasks[0].piece].whole
            maps = sides(whole, t.flip)[0]
            us, grads = self._restricted(t, maps), gradient_of(maps)
            for each in tasks:
                self._wait(each, False)
            if grads is None:  # all frozen
                continue
            dus = self._restricted(t, grads)
            total, *others = map(self._given, tasks)
            for other in others:
                total.add_(other)
            for u, du, x, q in zip(us, dus, _columns(t, sources_of(whole)), total, strict=True):
                u.accumulate(du, x.to(q.dtype), q)
        self.finish()


def _rectangle(task: Task) -> Rectangle:
    return task.piece, task.start, task.stop, task.columns


def _columns(task: Task, sources: Sequence[Tensor]) -> list[Tensor]:
    """X, or the columns of it that a task is about."""
    a, b = task.columns or (0, None)
    return [(x.t() if task.flip else x)[:, a:b] for x in sources]


def _message(task: Task, stack: Tensor) -> Tensor:
    """A stack as it lies in memory, contiguous."""
    return stack.transpose(1, 2) if task.flip else stack
