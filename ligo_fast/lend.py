"""The messages of `balance`: rows of a first product that one process computes for another.

To `backend_torch` a piece whose rows are computed elsewhere is one with other maps: `Received` has its
product at hand, `Sent` passes on what its gradient is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from .balance import Task, sides
from .blend import Layout, Workspace
from .maps import Map
from .order import Maps, first, per_layer
from .plan import Piece
from .products import rows_product
from .restrict import restrict, stacked
from .sharded import Part
from .team import Team


class Rows(Map):
    """Some rows M of a map of one source layer, and the values (rows, m) that belong to them."""

    def __init__(self, inner: Map, values: Tensor, ready: Callable[[], object]) -> None:
        self.inner, self.values, self.ready, self.shape = inner, values, ready, inner.shape
        self.here = False

    def factors(self) -> dict[str, Tensor]:
        return self.inner.factors()

    def left(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self.inner.left(x, out)

    def left_adjoint(self, g: Tensor, out: Tensor | None = None) -> Tensor:
        return self.inner.left_adjoint(g, out)

    def accumulate(self, grad: Map, x: Tensor, g: Tensor) -> None:
        self.inner.accumulate(grad, x, g)

    def block(self, start: int, stop: int) -> Map:
        return type(self)(self.inner.block(start, stop), self.values[start:stop], self.ready)

    def flops(self, m: int) -> int:
        return self.inner.flops(m)  # as if computed here: the order of the products stays


class Received(Rows):
    """M x is `values`, which another process computes."""

    def left(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        self.ready()
        return self.values if out is None else out.copy_(self.values)


class Sent(Rows):
    """g is put into `values`: another process adds g x^T to the gradient."""

    def accumulate(self, grad: Map, x: Tensor, g: Tensor) -> None:
        self.values.copy_(g)


class Loan:
    """The messages of one call.

    Attributes:
        pieces: by number, those of this process of which another computes rows.
    """

    kind: type[Rows]

    def __init__(self, team: Team | None, tasks: Sequence[Task], parts: Sequence[Part], like: Tensor) -> None:
        self.team, self.parts, self.like = team, parts, like
        self.lent = [t for t in tasks if team is not None and t.owner == team.rank]
        self.taken = [t for t in tasks if team is not None and t.helper == team.rank]
        self._call = team.count() if team is not None and tasks else 0
        self.stacks = {t.tag: self._stack(t) for t in (*self.lent, *self.taken)}
        self._waits: dict[int, Callable[[], None]] = {}
        self.pieces: dict[int, Piece] = {}
        for number in dict.fromkeys(t.piece for t in self.lent):  # most FLOPs per byte first
            self.pieces[number] = self._piece(number, [t for t in self.lent if t.piece == number])

    def _stack(self, task: Task) -> Tensor:
        """(L1, rows, columns) of P or Q."""
        whole = self.parts[task.piece].whole
        width = first(sides(whole, task.flip)[1]).shape[1]
        layout = Layout(task.flip, self.like, Workspace())
        return layout.empty(len(whole.small), task.stop - task.start, width)

    def _message(self, task: Task) -> Tensor:
        """A stack as it lies in memory, contiguous."""
        stack = self.stacks[task.tag]
        return stack.transpose(1, 2) if task.flip else stack

    def _piece(self, number: int, tasks: Sequence[Task]) -> Piece:
        part, flip = self.parts[number], tasks[0].flip
        assert part.piece is not None
        window = part.cols if flip else part.rows
        layers = []
        for j, m in enumerate(per_layer(sides(part.whole, flip)[0], len(part.whole.small))):
            rows, at = [], window[0]
            for t in sorted(tasks, key=lambda t: t.start):
                if at < t.start:
                    rows.append(restrict(m, at, t.start))
                inner, at = restrict(m, t.start, t.stop), t.stop
                rows.append(self.kind(inner, self.stacks[t.tag][j], partial(self._wait, t)))
            if at < window[1]:
                rows.append(restrict(m, at, window[1]))
            layers.append(stacked(rows))
        if flip:
            return replace(part.piece, order="width_first", cols=layers)
        return replace(part.piece, order="width_first", rows=layers)

    def piece(self, number: int) -> Piece | None:
        """This process's piece, for `backend_torch`."""
        return self.pieces.get(number, self.parts[number].piece)

    def _wait(self, task: Task) -> None:
        """Until a message has come or gone."""
        if (wait := self._waits.pop(task.tag, None)) is not None:
            wait()

    def _receive(self, tasks: Iterable[Task]) -> None:
        """Begin to."""
        for t in tasks:
            assert self.team is not None
            self._waits[t.tag] = self.team.receive(self._message(t), self._other(t), self._tag(t))

    def _send(self, tasks: Iterable[Task]) -> None:
        """Begin to."""
        for t in tasks:
            assert self.team is not None
            self._waits[t.tag] = self.team.send(self._message(t), self._other(t), self._tag(t))

    def _tag(self, task: Task) -> int:
        """Not that of a call before, of which an error may have left messages on their way."""
        return self._call % (1 << 12) << 16 | task.tag

    def _other(self, task: Task) -> int:
        assert self.team is not None
        return task.helper if task.owner == self.team.rank else task.owner

    def finish(self) -> None:
        """Until all messages have come or gone."""
        for t in (*self.lent, *self.taken):
            self._wait(t)
        self.pieces.clear()  # their maps hold this object
        self.stacks.clear()

    def _restricted(self, task: Task, maps: Maps) -> list[Map]:
        """The rows of a task, one map for each source layer."""
        count = len(self.parts[task.piece].whole.small)
        return [restrict(m, task.start, task.stop) for m in per_layer(maps, count)]


class ProductLoan(Loan):
    """P = U X: others' rows first, and who waits for rows does its other pieces first."""

    kind = Received

    def begin(self, sources_of: Callable[[Piece], Sequence[Tensor]]) -> None:
        """Compute and send the rows for others."""
        self._receive(self.lent)
        for t in self.taken:
            whole, stack = self.parts[t.piece].whole, self.stacks[t.tag]
            sources = [x.t() if t.flip else x for x in sources_of(whole)]
            layout = Layout(t.flip, self.like, Workspace())
            rows_product(sources, self._restricted(t, sides(whole, t.flip)[0]), stack, layout)
            self._send([t])

    def order(self, numbers: Iterable[int]) -> list[int]:
        """The pieces as they are best done."""
        return sorted(numbers, key=lambda n: n in self.pieces)


class GradientLoan(Loan):
    """dC += Q X^T from Q = Zg V: what others wait for first, others' rows last."""

    kind = Sent

    def __init__(self, team: Team | None, tasks: Sequence[Task], parts: Sequence[Part], like: Tensor) -> None:
        super().__init__(team, tasks, parts, like)
        for t in self.lent:
            self.stacks[t.tag].zero_()  # a piece without gradients leaves it so
        self._receive(self.taken)

    def order(self, numbers: Iterable[int]) -> list[int]:
        """The pieces as they are best done."""
        chosen = list(numbers)
        return [n for n in self.pieces if n in chosen] + [n for n in chosen if n not in self.pieces]

    def send_rows_of(self, number: int) -> None:
        """After the pull-back of a piece."""
        self._send([t for t in self.lent if t.piece == number])

    def add_taken(
        self, sources_of: Callable[[Piece], Sequence[Tensor]], gradient_of: Callable[[Maps], Any]
    ) -> None:
        """Add others' rows to the gradients, and wait until all is sent."""
        for t in self.taken:
            whole = self.parts[t.piece].whole
            maps = sides(whole, t.flip)[0]
            us, dus = self._restricted(t, maps), self._restricted(t, gradient_of(maps))
            self._wait(t)
            for u, du, x, q in zip(us, dus, sources_of(whole), self.stacks[t.tag], strict=True):
                u.accumulate(du, (x.t() if t.flip else x).to(q.dtype), q)
        self.finish()
