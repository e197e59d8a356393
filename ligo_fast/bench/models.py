"""Pairs of models as parameters alone: growing looks at nothing else, and no model library is needed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import registered
from ..checkpoint.skeleton import FIXED, Skeleton, as_namespace
from ..errors import GrowthError
from ..models.tables import parse

LABEL = "label"  # the axis of heads that classify
NOISE = 4_194_301  # values; a prime, so that rows of a matrix do not repeat one another


@dataclass(frozen=True)
class Pair:
    """Two models of one family.

    Attributes:
        family: the architecture's name.
        small, large: their configs, in Hugging Face's names.
        leave_out: parts of names of parameters in the table that they lack: tied heads, poolers, biases. They
            have no head of labels.
    """

    family: str
    small: dict[str, Any]
    large: dict[str, Any]
    leave_out: tuple[str, ...] = ()

    def shapes(self, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Of every parameter of one of the two, by name."""
        table = registered(self.family)
        named = as_namespace(config, table, self.family)
        sizes = {axis: size.read(named) for axis, size in table.sizes.items()}
        for axis, product in table.axes.items():
            sizes[axis] = math.prod(sizes[factor.partition(".")[0]] for factor in product.split("*"))
        for axis, keys in FIXED.items():
            sizes[axis] = next((config[key] for key in keys if key in config), 0)
        found: dict[str, tuple[int, ...]] = {}
        for pattern, dims in table.parameters.items():
            if LABEL not in dims and not any(part in pattern for part in self.leave_out):
                shape = tuple(sum(sizes[term.axis] for term in terms) for terms in parse(dims))
                for layer in range(sizes["layer"] if "*" in pattern else 1):
                    found[pattern.replace("*", str(layer))] = shape
        return found

    def parameters(self) -> tuple[int, int]:
        """How many the small and the large model have."""
        small, large = (sum(map(math.prod, self.shapes(c).values())) for c in (self.small, self.large))
        return small, large

    def build(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
    ) -> tuple[Skeleton, Skeleton]:
        """Random small weights; the large ones are not a number until an operator writes them."""
        noise = 0.02 * normal(dtype, device, seed)
        table = registered(self.family)
        models = []
        for config in (self.small, self.large):
            model = Skeleton(as_namespace(config | {"model_type": self.family}, table, self.family))
            for name, shape in self.shapes(config).items():
                model.add(name, nn.Parameter(torch.full(shape, math.nan, dtype=dtype, device=device)))
            models.append(model)
        for name, p in models[0].named_parameters():
            is_gain = p.dim() == 1 and name.endswith("weight")
            fill_(p.detach(), 1 + noise[: p.numel()] if is_gain else noise)
        return models[0], models[1]


def normal(dtype: torch.dtype, device: torch.device | str, seed: int) -> Tensor:
    """The random numbers that `fill_` repeats; as many as a model has would take longer than growing it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NOISE, generator=generator).to(device, dtype)


def fill_(out: Tensor, noise: Tensor) -> None:
    """Write these random numbers, over and over."""
    flat = out.view(-1)
    for start in range(0, flat.numel(), noise.numel()):
        part = flat[start : start + noise.numel()]
        part.copy_(noise[: part.numel()])


def _bert(layers: int, hidden: int, head_dim: int, vocab: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": hidden // head_dim,
        "intermediate_size": 4 * hidden, "vocab_size": vocab, "max_position_embeddings": 512,
        "type_vocab_size": 2, "layer_norm_eps": 1e-5,
    }  # fmt: skip


def _gpt2(layers: int, hidden: int, head_dim: int, vocab: int) -> dict[str, Any]:
    return {
        "n_layer": layers, "n_embd": hidden, "n_head": hidden // head_dim, "n_inner": 4 * hidden,
        "vocab_size": vocab, "n_positions": 1024, "layer_norm_epsilon": 1e-5,
    }  # fmt: skip


def _llama(layers: int, hidden: int, head_dim: int, vocab: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": hidden // head_dim,
        "num_key_value_heads": hidden // head_dim, "head_dim": head_dim,
        "intermediate_size": 8 * hidden // 3, "vocab_size": vocab, "rms_norm_eps": 1e-5,
    }  # fmt: skip


FAMILIES: dict[str, tuple[Callable[[int, int, int, int], dict[str, Any]], int, tuple[str, ...]]] = {
    # config, vocabulary, parts of names left out: untied heads of BERT and GPT-2, norms of Qwen's heads
    "bert": (_bert, 30522, ("pooler", "decoder")),
    "gpt2": (_gpt2, 50257, ("lm_head",)),
    "llama": (_llama, 32000, ("proj.bias", "_norm.weight")),
}
Size = tuple[int, int]  # layers and hidden units


def pair(family: str, small: Size, large: Size, head_dim: int = 64, vocab: int = 0, **both: int) -> Pair:
    """Models of these layers and hidden units; `both` are further values of both configs."""
    config, usual, leave_out = FAMILIES[family]
    a, b = (config(*size, head_dim, vocab or usual) | both for size in (small, large))
    return Pair(family, a, b, leave_out)


def with_values(models: Pair, small: dict[str, int], large: dict[str, int]) -> Pair:
    """The same with other config values."""
    return replace(models, small=models.small | small, large=models.large | large)


SHAPE = re.compile(r"(\d+)x(\d+):(\d+)x(\d+)")


def read_shape(text: str, family: str) -> Pair:
    """ "6x512:12x768" as a pair: (layers x hidden) of the small and of the large model.

    Raises:
        GrowthError: for another form, a family without a shape, sizes that shrink or are not whole heads.
    """
    match = SHAPE.fullmatch(text)
    if match is None:
        raise GrowthError(f"shape {text!r}: write LAYERSxHIDDEN:LAYERSxHIDDEN, such as 6x512:12x768")
    if family not in FAMILIES:
        raise GrowthError(f"model family {family!r} is none of {', '.join(FAMILIES)}")
    l1, h1, l2, h2 = map(int, match.groups())
    if not 0 < l1 <= l2 or not 0 < h1 <= h2:
        raise GrowthError(f"shape {text!r}: sizes are at least 1, and the large model's at least the small's")
    head_dim = next((d for d in (64, 32, 16, 8) if h1 % d == h2 % d == 0), 0)
    if not head_dim:
        raise GrowthError(f"shape {text!r}: hidden {h1} and {h2} are not multiples of 8, the least head_dim")
    return pair(family, (l1, h1), (l2, h2), head_dim)
