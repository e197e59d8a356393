"""GrowthOperator: the map from one model's weights to another's; its parameters are the factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .arguments import check_noise, check_seed
from .axes import Axis, AxisMaps, Context, Family, PerLayer, rescaled
from .compute.backends import resolve_precision
from .errors import GrowthError
from .execution import Execution
from .fetch import Fetch, FromDevice, FromFiles, find_weights
from .functional import grown_tensors
from .growth import Growth, depth_matrix, labelled, record
from .maps import Map
from .method_maps import MethodMaps
from .methods import resolve
from .models.buffers import check_trained
from .models.modes import no_autocast, no_modes
from .models.tables import (
    check_apart,
    check_finite,
    common_architecture,
    common_device_and_dtype,
    common_tie,
    read_axes,
    read_families,
)
from .models.target import materialize, unwrap
from .plan import Grown, check_strides, make_pieces
from .processes.distributed import Fetched, agree_on_plan
from .processes.dtensors import reshard
from .processes.team import Team, team_of_models, together
from .summary import summary

if TYPE_CHECKING:
    from .checkpoint.weights import WeightFiles


class GrowthOperator(nn.Module):
    """W'[l] = U (sum_j D[l, j] W[j]) V^T for every parameter of a pair of models (LiGO, ICLR 2023).

    Its parameters are the learned factors (none for a training-free method), in float32, or float64 for
    float64 models. Building it changes no weight; `apply_()` writes the large model. Threads that call one
    operator take turns.

    Args:
        small: the trained model; never changed.
        large: a model of the same class, wider and/or deeper. One on the meta device gets memory here; a
            sharded one grows on all its processes, which make the same calls (docs/distributed.md).
            With both on the meta device there are maps and factors but nothing to apply them to:
            `ligo_fast.checkpoint` grows files with them.
        method: a name, "width+depth", or a pair, see `ligo_fast.methods.names()`.
        seed: of everything random; the same seed repeats bit for bit.
        noise: symmetry breaking: a matrix that consumes a grown axis gets noise of this many of its own
            standard deviations, projected so that the function stays as it is. For fixed maps; not
            for `random`, whose new units are no copies and have no symmetry to break.
        precision: of products on a GPU: "ieee", "tf32" or "bf16" operands, always summed in float32; "auto"
            is "bf16" for bfloat16 models, else what torch is set to for float32 (either of its settings).
        source: a checkpoint folder (safetensors) with the weights of a small model on the meta device. A
            family is read from it when it is needed and freed again, as is one of a small model on the CPU
            whose large one is on a GPU (docs/memory.md).
        options: of the width and depth methods, e.g. those of `ligo_fast.methods.ligo.ligo`.

    Raises:
        GrowthError: for models or sizes that the method cannot grow; nothing was written, on any process.
    """

    small: nn.Module
    large: nn.Module
    team: Team | None  # the processes that grow together, if several do
    holder: int | None  # the one of them that sends the small model to the others, if it must be sent
    files: WeightFiles | None  # that have the small model's weights, if it is on the meta device

    def __init__(
        self,
        small: nn.Module,
        large: nn.Module,
        method: str | Sequence[str] = "ligo",
        seed: int = 0,
        noise: float = 0.0,
        precision: str = "auto",
        source: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        small, large, seed, noise = unwrap(small), unwrap(large), check_seed(seed), check_noise(noise)
        # not submodules: the operator's parameters and state are the factors only
        object.__setattr__(self, "small", small)
        object.__setattr__(self, "large", large)
        self.seed, self.options = seed, options
        reshard(large)  # a forward pass leaves the root's parameters gathered
        self.team, self.holder, self.files = team_of_models(small, large), None, None
        with no_modes(), together(self.team):
            if source is not None:
                self.files = find_weights(source, small)
            self._build(method, noise, precision, options)
        self.join(self.team)

    def _build(
        self, method: str | Sequence[str], noise: float, precision: str, options: dict[str, Any]
    ) -> None:
        small, large, seed = self.small, self.large, self.seed
        self.pair = resolve(method)
        if noise and (self.pair[0].fresh or not self.pair[0].writes):
            raise GrowthError(
                f"noise={noise:g} parts copies, and {self.pair[0].name!r} makes none: take 'net2net'"
            )
        self._methods = MethodMaps(self.pair, options)
        architecture = common_architecture(small, large)
        self.device, self.dtype = common_device_and_dtype(
            small, large, alone=self.team is None, stored=self.files is not None
        )
        axes = read_axes(architecture, small, large)
        tied = common_tie(architecture, small, large)
        families = read_families(architecture, small, large, axes)
        if self.pair[0].writes:
            check_trained(architecture, small, large, self.pair[1].reorders)
        self._weightless = next(small.parameters()).is_meta and self.files is None
        if self.files is None and not self._weightless:
            check_finite(list(small.named_parameters()))

        self.growth = Growth(self.pair, architecture, axes, tied=tied, noise=float(noise), dtype=self.dtype)
        self._context = Context(seed, (axes["layer"].small, axes["layer"].large))
        self._adopted: dict[int, tuple[Tensor, Tensor]] = {}
        for axis in sorted({t.axis for f in families for dim in f.dims for t in dim if t.axis in axes}):
            grown = self._width_maps(axes[axis])
            self.growth.maps[axis] = grown
            for label, m in labelled(axis, grown):
                self._adopt(f"width/{label}", m)
        shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (small, large)]

        def depth_of(family: Family) -> Map:
            m = self._methods.of_family(family, self._context)
            self.growth.depth[family.name] = m
            self._adopt(f"depth/{family.name}", m)
            return m

        self.pieces = make_pieces(families, axes, self.growth.maps, depth_of, self.pair, shapes, tied)
        if noise and self.is_learned:
            raise GrowthError("noise= is for fixed maps; a learned map has width_noise= and depth_noise=")
        self._drop_unused_factors()
        self._adopted.clear()  # the tensors the methods made
        self._large_dtype = next(large.parameters()).dtype
        self.precision = resolve_precision(precision, self._large_dtype)
        check_strides(self.pieces, *(dict(m.named_parameters()) for m in (small, large)))
        check_apart(small, large, {n for piece in self.pieces for n in piece.large})
        if not self._weightless or self.team is not None:
            written = {n for piece in self.pieces if not piece.keep for n in piece.large}
            # processes may have made their small models in other ways: what the target says is common to them
            materialize(large, self.device, seed, written, None if self.team is not None else small)
        self._execution = Execution(self).bind()

    def join(self, team: Team | None) -> None:
        """Grow and learn with other processes, which make the same call with the same operator.

        Raises:
            GrowthError: on every rank, when they have not made the same operator.
        """
        self.team = team
        self.holder = None if team is None else agree_on_plan(self, team)

    # where the small model is

    @property
    def streams(self) -> bool:
        """Whether the small model's weights come here one family at a time, to be freed again."""
        if self.holder is not None or self.files is not None:
            return True
        first = next(iter(self._execution.bound.owners[0]))
        return not self._weightless and first is not None and first.device != self.device

    def fetch(self) -> Fetch | None:
        """What brings the small model's weights here, for one call; None where they are here."""
        if self.team is not None and self.holder is not None:
            return Fetched(self.team, self.holder)
        if self.files is not None:
            return FromFiles(self.files, self.device)
        return FromDevice(self.device) if self.streams else None

    # construction

    def _width_maps(self, axis: Axis) -> Grown:
        grown = self._methods.of_axis(axis, self._context)
        if isinstance(grown, AxisMaps) and any(f.tag == "normed" for f in axis.factors):
            # norm(sqrt(r) x, r eps) = norm(x, eps): what a method does to the shared epsilon is undone here
            eps = [self.growth.architecture.read_eps(m) for m in (self.small, self.large)]
            grown = rescaled(grown, (eps[1] / eps[0]) ** 0.5 if eps[0] else 1.0)
        return grown

    def _adopt(self, name: str, m: Map) -> None:
        """Bring a map's tensors to this device and dtype; those that ask for a gradient become parameters."""

        def adopt(t: Tensor) -> Tensor:
            if id(t) not in self._adopted:
                new = t.detach().to(self.device, self.dtype if t.is_floating_point() else t.dtype)
                self._adopted[id(t)] = (t, nn.Parameter(new.clone()) if t.requires_grad else new)
            return self._adopted[id(t)][1]

        known = {id(p) for p in self.parameters()}
        m.transform(adopt)
        for factor, t in m.factors().items():
            if isinstance(t, nn.Parameter) and id(t) not in known:
                self.register_parameter(f"{name}/{factor}".replace(".", "/"), t)

    def _drop_unused_factors(self) -> None:
        """A map in a role that no parameter plays (V of q, say) has nothing to learn."""
        used = {id(t) for piece in self.pieces for m in piece.maps() for t in m.factors().values()}
        for name, p in list(self.named_parameters()):
            if id(p) not in used:
                delattr(self, name)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> GrowthOperator:
        """Moves and casts of the module reach the tensors of fixed maps too."""
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if moved.dtype not in (torch.float32, torch.float64):
            raise GrowthError(f"factors are float32 or float64, not {moved.dtype}")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.device, self.dtype = moved.device, moved.dtype
        every = [m for _, m in self.growth.named_maps()] + [m for piece in self.pieces for m in piece.maps()]
        for m in every:
            m.transform(fn)
        self._execution = Execution(self).bind()
        return self

    # use

    @property
    def is_learned(self) -> bool:
        """Whether the method has factors to learn."""
        return any(p is not None for p in self._parameters.values())  # parameters() takes 6 us

    def apply_(self) -> nn.Module:
        """Write the grown weights into the large model's parameters, in place, and return it.

        Raises:
            GrowthError: when a parameter was resized, moved or cast since, or both models are on the meta
                device; nothing was written.
        """
        if self._weightless and self.team is None:
            raise GrowthError("the source is on the meta device: it has no weights to grow")
        with self._execution.lock:
            self._execution.apply()
        record(self.large, self.growth, self.small)
        return self.large

    def pullback(self) -> None:
        """Add to each factor's `.grad` the gradient that the large model's `.grad`s imply.

        The adjoint of `apply_`: exactly what autograd would give through the functional form, without its
        buffers (formulas in `ligo_fast.compute.backend_torch`). Parameters without a gradient count as zero.

        While the grown weights, the small ones and the factors are what `apply_` left (as autograd checks
        the tensors it saves; only a write through `.data` escapes), half of the work is read off the grown
        weights; otherwise it is computed again from the factors.

        Raises:
            GrowthError: when there is nothing to learn, or no parameter has a gradient.
        """
        with self._execution.lock:
            self._execution.pullback()

    def forward(self) -> dict[str, Tensor]:
        """The grown weights by parameter name, differentiable in the factors and in the small weights.

        For `torch.func.functional_call(large, op(), ...)`: the functional way to learn, which autograd and
        torch.compile see whole. `GrowthOptimizer` gives the same gradients with far less memory.

        Raises:
            GrowthError: for sharded models, a small model that is not where the large one is, or a method
                that keeps some of the target's weights.
        """
        with no_autocast(self.device):
            return grown_tensors(self)

    # reports

    def width_maps(self) -> dict[str, Tensor]:
        """U of every growing axis, (n_large, n_small); of the first layer where layers differ."""
        first = {a: g.maps[0] if isinstance(g, PerLayer) else g for a, g in self.growth.maps.items()}
        return {a: g.out.dense(self.dtype) for a, g in first.items() if self.growth.axes[a].grows}

    def depth_maps(self) -> dict[str, Tensor]:
        """D of every family, (L_large, L_small); a row that keeps the target's layer is zero."""
        return {name: depth_matrix(m).to(self.dtype) for name, m in self.growth.depth.items()}

    def flops(self, what: str = "apply") -> int:
        """Multiplications and additions of one `apply_` or one pull-back to the factors.

        Args:
            what: "apply"; "pullback", which computes from the factors alone; or "pullback, grown", which
                reads the grown weights as it may right after `apply_`: what a learning step does.
        """
        if what not in ("apply", "pullback", "pullback, grown"):
            raise GrowthError(f"flops({what!r}): 'apply', 'pullback' or 'pullback, grown'")
        grown = what.endswith("grown") and self._large_dtype == self.dtype
        return sum(p.flops(what != "apply", grown and not p.keep) for p in self.pieces)

    def extra_repr(self) -> str:
        return summary(self)
