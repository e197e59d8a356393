"""Gradients of the large model that are pulled back to the factors inside backward, and freed at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..compute.gradient_maps import make_gradients, wants_gradient
from ..compute.layerwise import Layerwise
from ..errors import GrowthError
from ..operator import GrowthOperator

WHAT_INSTEAD = (
    "release_grads=True: the gradients of the large model were pulled back to the factors inside backward "
    "and freed; for clipping give GrowthOptimizer max_grad_norm= and turn the trainer's own off "
    "(max_grad_norm=0 in TrainingArguments)"
)
_HOOKED = WeakTensorKeyDictionary()  # parameter -> a weak reference to the release that has a hook on it


class Released(Tensor):
    """The `.grad` of a parameter whose gradient was consumed: a shape without memory.

    Autograd adds the next gradient to it, which it keeps until that is consumed, too. Whoever else reads or
    changes it gets a GrowthError. Two things are answered: zeroing, and the norm, infinite, for trainers that
    ask for it to log it and clip to infinity.
    """

    owner: weakref.ref[GradientRelease]
    added: Tensor | None = None

    @staticmethod
    def of(p: Tensor, owner: weakref.ref[GradientRelease]) -> Released:
        """Stands for the gradient of `p`, which `owner` consumed."""
        made: Released = torch.Tensor._make_wrapper_subclass(
            Released, p.shape, strides=p.stride(), dtype=p.dtype, device=p.device
        )
        made.owner = owner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        aten, op = torch.ops.aten, func.overloadpacket
        if op is aten.detach:
            return args[0]
        if op is aten.zero_:
            if (owner := args[0].owner()) is not None:
                owner.zero()
            return args[0]
        if op in (aten.add_, aten.add) and torch._C._current_autograd_node() is not None:
            args[0].added = args[1]
            return args[0]
        if op is aten.linalg_vector_norm:
            return torch.full((), torch.inf, dtype=torch.float32, device=args[0].device)
        if op is aten._foreach_norm:
            return [torch.full((), torch.inf, dtype=torch.float32, device=t.device) for t in args[0]]
        # clipping to infinity: inf / inf
        if op in (aten.mul_, aten._foreach_mul_) and isinstance(args[1], Tensor) and bool(args[1].isnan()):
            return args[0]
        raise GrowthError(WHAT_INSTEAD)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Released({list(self.shape)}, {self.dtype})"


class GradientRelease:
    """Hooks on the large model's parameters that pull every gradient back as soon as it is there.

    Gradients of the factors add up over backward passes until they are zeroed: by `zero`, or by zeroing those
    of the large model.

    Raises:
        GrowthError: for a parameter whose gradients another release consumes; nothing was hooked.
    """

    def __init__(self, op: GrowthOperator) -> None:
        self.op, self.layerwise = op, Layerwise(op)
        self._consumed: dict[int, nn.Parameter] = {}  # since the last zeroing
        self._handles = []
        learned = [(n, p) for n, p in op.large.named_parameters() if p.requires_grad]
        for name, p in learned:
            if (other := _HOOKED.get(p)) is not None and other() is not None:
                raise GrowthError(
                    f"another GrowthOptimizer(release_grads=True) consumes the gradient of parameter {name}: "
                    "close() that one first"
                )
        me = weakref.ref(self)  # the model must not keep an optimizer that nobody uses any more
        for _, p in learned:
            self._handles.append(p.register_post_accumulate_grad_hook(_hook(me, Released.of(p, me))))
            _HOOKED[p] = me

    def close(self) -> None:
        """Remove the hooks: from now on gradients of the large model stay where they are."""
        self.zero()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for p in self.op.large.parameters():
            if isinstance(p.grad, Released):  # its hook was interrupted
                p.grad = None
            _HOOKED.pop(p, None)

    def zero(self) -> None:
        """Forget all gradients: those of the factors, and the marks on the large model's parameters."""
        for factor in self.op.parameters():
            factor.grad = None
        for p in self._consumed.values():
            if isinstance(p.grad, Released):
                p.grad = None
        self._consumed.clear()

    def finish(self) -> None:
        """Check that every gradient was consumed, before a step; factors that none concerned get zeros.

        Raises:
            GrowthError: when there was none, or a parameter has one that no hook has seen.
        """
        for name, p in self.op.large.named_parameters():
            if p.grad is not None and not isinstance(p.grad, Released):
                raise GrowthError(
                    f"parameter {name} kept its gradient: it was replaced, unfrozen or given one after "
                    "GrowthOptimizer(release_grads=True) was made; make it after everything that does that"
                )
        self._notice_zeroing()
        if not self._consumed:
            raise GrowthError(
                "no parameter of the large model had a gradient: call loss.backward() first, on the very "
                "model that the operator was made for, not a copy"
            )
        make_gradients(filter(wants_gradient, self.op.parameters()))
        self.layerwise.workspace.free()  # writing the weights takes its own

    def consume(self, p: nn.Parameter, mark: Released) -> None:
        """Pull the gradient that was just accumulated back and leave `mark` in its place."""
        first = next(iter(self._consumed.values()), p)  # one is enough to look at for each
        if not isinstance(first.grad, Released) or (id(p) in self._consumed and p.grad is not mark):
            self._notice_zeroing()
        if p.grad is mark:
            p.grad, mark.added = mark.added, None
        self.layerwise.pull_back(p)
        p.grad = mark
        self._consumed[id(p)] = p

    def _notice_zeroing(self) -> None:
        """Whether the large model's gradients were zeroed (set to None) since they were consumed."""
        gone = [p for p in self._consumed.values() if not isinstance(p.grad, Released)]
        if not gone:
            return
        if len(gone) < len(self._consumed):
            raise GrowthError(
                f"the gradient of {self.layerwise.name(gone[0])} was cleared, those of others were not: "
                "release_grads=True has added them all up in the factors; clear them together (zero_grad)"
            )
        self.zero()


def _hook(release: weakref.ref[GradientRelease], mark: Released) -> Callable[[Tensor], None]:
    def hook(p: Tensor) -> None:
        alive = release()
        if alive is not None:
            assert isinstance(p, nn.Parameter)
            alive.consume(p, mark)

    return hook
