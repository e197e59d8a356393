"""`grow`: from a small model to a large one in one call."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, overload

import torch
from torch import nn
from torch.optim import AdamW

from .architectures import Architecture, architecture_of
from .arguments import check_batches, check_noise, check_optimizer, check_seed, check_steps
from .axes import Axis, Context
from .errors import GrowthError
from .map_checks import check_axis
from .method_maps import MethodMaps
from .methods import Method, resolve
from .models.buffers import copy_trained
from .models.layer_types import with_layer_types
from .models.modes import no_modes
from .models.tables import check_finite
from .models.target import build, target_config, unwrap, with_values
from .operator import GrowthOperator
from .processes.team import together
from .training.learning import learn

DEFAULT = "random+stack"
LEARN_OPTIONS = frozenset(
    name for name, p in inspect.signature(learn).parameters.items() if p.kind is p.KEYWORD_ONLY
)


@overload
def grow(small: nn.Module, *, return_operator: Literal[False] = ..., **options: Any) -> nn.Module: ...
@overload
def grow(
    small: nn.Module, *, return_operator: Literal[True], **options: Any
) -> tuple[nn.Module, GrowthOperator]: ...
def grow(
    small: nn.Module,
    *,
    target: Any = None,
    width: int | None = None,
    depth: int | None = None,
    method: str | Sequence[str] | None = None,
    data: Iterable[Any] | None = None,
    steps: int = 100,
    seed: int = 0,
    noise: float = 0.0,
    return_operator: bool = False,
    **options: Any,
) -> nn.Module | tuple[nn.Module, GrowthOperator]:
    """A larger model that starts from a small one's weights.

    Args:
        small: the trained model; never changed.
        target: a config or a module of the small model's class (on the meta device, too); else the target is
            the small model's config with `width` (residual units; heads grow in number at a fixed head_dim,
            ffn in proportion) and `depth` (layers; if none, as many as the method lists), and the norm's
            epsilon as exactness asks.
            Trained buffers (running statistics, say) are copied; those that would have to grow are refused.
        method: see `ligo_fast.methods.names()`. None: "ligo" where there is `data` to learn its operator on,
            else "random+stack", among the best in docs/savings.md.
        data, steps: batches and steps for a learned method; without data the initial operator is applied. A
            method that learns nothing takes no notice of them.
        seed, noise: see `GrowthOperator`.
        return_operator: return the operator, too, for `grow_optimizer` or `save_operator`; it holds on to
            both models.
        options: of the method, of `learn` and its inner optimizer, or config values under the config's own
            names (`num_attention_heads=`, `intermediate_size=` …).

    Threads may grow models at the same time: new units are drawn as after torch.manual_seed(seed), but from a
    generator of this call. Only where a constructor draws in ways that take no generator is torch's global
    one seeded and put back, under a lock; threads that draw from that meanwhile get other numbers.

    Returns:
        The large model, in the small one's dtype, on its device and in its train/eval mode, with its
        generation config, and frozen where all layers of it are; a module given as the target keeps its own.
        Hooks, attributes of one's own and gradient checkpointing stay with the small model.
        With `return_operator` the pair (large model, operator).

    Raises:
        GrowthError: naming the axis, parameter or option and the numbers; nothing was written. Or, when all
            is written, for grown values that are beyond float16's 65504.
    """
    small, seed, noise = unwrap(small), check_seed(seed), check_noise(noise)
    if data is not None:
        check_batches("data", data)
        steps = check_steps(steps)
    if method is None:
        method = DEFAULT if data is None else "ligo"
    architecture, pair = architecture_of(small), resolve(method)
    method_names = pair[0].options() | pair[1].options()
    method_options = {k: v for k, v in options.items() if k in method_names}
    check_optimizer(options.get("optimizer", AdamW))
    inner = inspect.signature(options.get("optimizer", AdamW)).parameters
    of_config = dir(architecture.config(small))
    learn_names = (LEARN_OPTIONS | {k for k in inner if k not in of_config}) - method_names
    learn_options = {k: v for k, v in options.items() if k in learn_names}
    overrides = {k: v for k, v in options.items() if k not in method_names | learn_names}
    if alien := sorted(overrides.keys() & {"source", "precision"}):
        raise GrowthError(f"{', '.join(alien)}: of GrowthOperator, not of grow")
    if target is None and depth is None and architecture.sizes["layer"].name not in overrides:
        depth = None if pair[1].layers is None else len(pair[1].layers)

    if target is None:
        if width is None and depth is None and not overrides:
            raise GrowthError("say what to grow to: width=, depth=, target=, or values of the config")
        config = target_config(architecture, small, width, depth, overrides)
        config = scale_eps(config, architecture, small, pair[0], method_options, seed)
        if "layer_types" not in overrides:
            config = with_layer_types(config, architecture, small, MethodMaps(pair, method_options), seed)
    else:
        if width is not None or depth is not None or overrides:
            odd = ", ".join(
                [*(n for n, v in (("width", width), ("depth", depth)) if v is not None), *overrides]
            )
            raise GrowthError(f"target= already says the sizes; leave out {odd}")
        config = target
    given = isinstance(target, nn.Module)
    keeps = pair[0].fresh or not pair[0].writes  # as the methods say; others only once there are pieces
    large = target if given else build(architecture, small, config, seed, random=keeps)

    if learn_options and data is None:
        raise GrowthError(
            f"{', '.join(learn_options)}: options of learning, but there is no data= to learn on"
        )
    op = GrowthOperator(small, large, method=method, seed=seed, noise=noise, **method_options)
    if not given and not keeps and _keeps_target(op):
        large = build(architecture, small, config, seed)
        op = GrowthOperator(small, large, method=method, seed=seed, noise=noise, **method_options)
    if pair[0].writes:
        with together(op.team), no_modes():
            copy_trained(architecture, op.small, op.large)
    if learn_options and not op.is_learned:
        raise GrowthError(f"{', '.join(learn_options)}: method {op.growth.method!r} has nothing to learn")
    if data is not None and op.is_learned:
        if not given:
            op.apply_()  # learning begins with a look at the loss, and a target made here has no content yet
        learn(op, data, steps, **learn_options)
    else:
        if op.is_learned:
            warnings.warn(
                f"method {op.growth.method!r} without data=: its initial operator is applied, nothing is "
                "learned",
                stacklevel=2,
            )
        op.apply_()
    if next(large.parameters()).dtype == torch.float16:
        with together(op.team), no_modes():
            check_finite(list(large.named_parameters()), "target, in float16,")
    if not given:
        _freeze_as_source(op)
    return (large, op) if return_operator else large


def _freeze_as_source(op: GrowthOperator) -> None:
    """What is frozen in every layer of the small model is frozen in the large one."""
    for piece in op.pieces:
        if not any(op.small.get_parameter(name).requires_grad for name in piece.small):
            for name in piece.large:
                op.large.get_parameter(name).requires_grad_(False)


def _keeps_target(op: GrowthOperator) -> bool:
    """Whether some of the large model's own values stay, as `random` and `identity` want it."""
    parameters = dict(op.large.named_parameters(remove_duplicate=False))
    written = Counter[int]()
    for piece in op.pieces:
        for p in () if piece.keep else map(parameters.__getitem__, piece.large):
            written[id(p)] += piece.large_slot.of(p).numel()
    return any(written[id(p)] < p.numel() for p in op.large.parameters())


def scale_eps(
    config: Any,
    architecture: Architecture,
    small: nn.Module,
    width: Method,
    options: dict[str, Any],
    seed: int,
) -> Any:
    """The config with the norm's epsilon that the width method's norm rule asks for; `options` as given."""
    if architecture.eps is None or width.composed:
        return config
    n1 = architecture.read_sizes(small)["embed"]
    n2 = architecture.sizes["embed"].read(config)
    if n2 <= n1:
        return config  # nothing grows, or GrowthOperator says what is wrong
    own = {name: options[name] for name in width.options() & options.keys()}
    axis = Axis("embed", n1, n2, norm=architecture.norm)
    with no_modes():
        maps = width.fn(axis, Context(seed, (1, 1)), **own)
    check_axis(width.name, axis, maps)
    return with_values(config, {architecture.eps: getattr(config, architecture.eps) * maps.eps_scale})
