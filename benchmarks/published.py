"""The operation sequence of the published LiGO code for BERT: the baseline this library is measured against.

For every parameter of every large layer, one by one:

    depth   sum(stacked * coefficients, -1)        all small layers stacked along the last dimension
    in      cat([w, w @ C_in.T], 1)                C: the learned rows below the identity of [I; C]
    out     cat([w, C_out @ w], 0)

Embedding, position and head parameters have no depth step. Query, key, value and feed-forward maps belong
to one target layer each; `embed` is shared by the network, and the head's transform has a map of its own.
Autograd differentiates it. Written from the algorithm; equal to it operation by operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import BertForMaskedLM

# Parameter -> axis of each dimension; vocab, position and token_type do not grow.
LAYER_AXES: dict[str, tuple[str, ...]] = {
    "attention.self.query.weight": ("q", "embed"),
    "attention.self.query.bias": ("q",),
    "attention.self.key.weight": ("k", "embed"),
    "attention.self.key.bias": ("k",),
    "attention.self.value.weight": ("v", "embed"),
    "attention.self.value.bias": ("v",),
    "attention.output.dense.weight": ("embed", "v"),
    "attention.output.dense.bias": ("embed",),
    "attention.output.LayerNorm.weight": ("embed",),
    "attention.output.LayerNorm.bias": ("embed",),
    "intermediate.dense.weight": ("ffn", "embed"),
    "intermediate.dense.bias": ("ffn",),
    "output.dense.weight": ("embed", "ffn"),
    "output.dense.bias": ("embed",),
    "output.LayerNorm.weight": ("embed",),
    "output.LayerNorm.bias": ("embed",),
}

OUTER_AXES: dict[str, tuple[str, ...]] = {
    "bert.embeddings.word_embeddings.weight": ("vocab", "embed"),
    "bert.embeddings.position_embeddings.weight": ("position", "embed"),
    "bert.embeddings.token_type_embeddings.weight": ("token_type", "embed"),
    "bert.embeddings.LayerNorm.weight": ("embed",),
    "bert.embeddings.LayerNorm.bias": ("embed",),
    "cls.predictions.transform.dense.weight": ("head", "embed"),
    "cls.predictions.transform.dense.bias": ("head",),
    "cls.predictions.transform.LayerNorm.weight": ("head",),
    "cls.predictions.transform.LayerNorm.bias": ("head",),
    "cls.predictions.decoder.weight": ("vocab", "head"),
    "cls.predictions.bias": ("vocab",),
}

Maps = dict[str, Tensor]
Product = Callable[[Tensor, Tensor], Tensor]

LAYER = re.compile(r"^bert\.encoder\.layer\.(\d+)\.")


@dataclass
class Factors:
    """What is learned: `outer` maps embed and head, `layers[l]` maps q, k, v, ffn; `depth[name][l]` mixes."""

    outer: dict[str, Tensor]
    layers: list[dict[str, Tensor]]
    depth: dict[str, list[Tensor]]

    @staticmethod
    def from_maps(width: Mapping[str, Tensor], depth: Mapping[str, Tensor], shared_maps: bool) -> Factors:
        """Leaves from dense [I; C] maps of `embed`, `q`, `k`, `v`, `ffn` and (L2 x L1) maps by parameter.

        Shared maps: one leaf an axis, and `embed` for the head. Otherwise a copy for each target layer and
        for the head, as published.
        """
        learned = {axis: _leaf(learned_rows(dense)) for axis, dense in width.items()}
        mixes = {name: [_leaf(row) for row in matrix] for name, matrix in depth.items()}
        embed = learned.pop("embed")
        count = len(next(iter(mixes.values())))
        if shared_maps:
            return Factors({"embed": embed, "head": embed}, [learned] * count, mixes)
        copies = [{axis: _leaf(rows) for axis, rows in learned.items()} for _ in range(count)]
        return Factors({"embed": embed, "head": _leaf(embed)}, copies, mixes)

    def leaves(self) -> Iterator[Tensor]:
        """Every learned tensor once."""
        width = [*self.outer.values(), *(rows for maps in self.layers for rows in maps.values())]
        mixes = [row for rows in self.depth.values() for row in rows]
        yield from {id(leaf): leaf for leaf in [*width, *mixes]}.values()

    def double(self) -> Factors:
        """The same factors in float64, as new leaves that are shared where these are."""
        copies = {id(leaf): _leaf(leaf.double()) for leaf in self.leaves()}
        return Factors(
            {axis: copies[id(rows)] for axis, rows in self.outer.items()},
            [{axis: copies[id(rows)] for axis, rows in maps.items()} for maps in self.layers],
            {name: [copies[id(row)] for row in rows] for name, rows in self.depth.items()},
        )


def _leaf(values: Tensor) -> Tensor:
    return values.detach().clone().requires_grad_()


def learned_rows(dense: Tensor) -> Tensor:
    """C of a dense [I; C]; any other map is refused, because the published sequence cannot express it."""
    size = dense.shape[1]
    if not torch.equal(dense[:size], torch.eye(size, dtype=dense.dtype, device=dense.device)):
        raise ValueError("the first rows of a published LiGO map are the identity")
    return dense[size:]


def initial_maps(small: BertForMaskedLM, large: BertForMaskedLM, seed: int = 0) -> tuple[Maps, Maps]:
    """Width maps by axis and depth maps by parameter, as initialised there.

    Rows of C are random and sum to one; depth stacks the layers, plus noise, rows summing to one.
    """
    generator = torch.Generator().manual_seed(seed)
    narrow, wide = (
        {"embed": m.config.hidden_size, "ffn": m.config.intermediate_size} for m in (small, large)
    )
    width: Maps = {}
    for axis in ("embed", "q", "k", "v", "ffn"):
        size = "ffn" if axis == "ffn" else "embed"
        rows = torch.rand(wide[size] - narrow[size], narrow[size], generator=generator)
        width[axis] = torch.cat([torch.eye(narrow[size]), rows / rows.sum(1, keepdim=True)])
    old, new = small.config.num_hidden_layers, large.config.num_hidden_layers
    depth: Maps = {}
    for name in LAYER_AXES:
        mix = 0.03 * torch.rand(new, old, generator=generator)
        mix[torch.arange(new), torch.arange(new) % old] = 1.0
        depth[name] = mix / mix.sum(1, keepdim=True)
    return width, depth


def stack_layers(model: nn.Module, tied: bool) -> dict[str, Tensor]:
    """The small model as published: each layer parameter of all layers as one tensor, layers last.

    `tied=False` is the published behaviour: the tied decoder weight is grown a second time, on its own.
    """
    state = dict(model.named_parameters()) if tied else model.state_dict()
    state = {name: tensor.detach() for name, tensor in state.items()}
    count = 1 + max(int(match[1]) for match in map(LAYER.match, state) if match)
    stacked = {name: state[name] for name in OUTER_AXES if name in state}
    for name in LAYER_AXES:
        stacked[name] = torch.stack([state[f"bert.encoder.layer.{i}.{name}"] for i in range(count)], -1)
    return stacked


def widen(
    weight: Tensor, out_rows: Tensor | None, in_rows: Tensor | None = None, product: Product = torch.matmul
) -> Tensor:
    """[I; C_out] weight [I; C_in]^T, in dimension first; None leaves a dimension as it is."""
    if in_rows is not None:
        weight = torch.cat([weight, product(weight, torch.transpose(in_rows, 0, 1))], 1)
    if out_rows is not None:
        weight = torch.cat([weight, product(out_rows, weight)], 0)
    return weight


def grow(stacked: Mapping[str, Tensor], factors: Factors) -> dict[str, Tensor]:
    """The large parameters by name, differentiable in the factors."""
    large: dict[str, Tensor] = {}
    for name, axes in OUTER_AXES.items():
        if name in stacked:
            large[name] = widen(stacked[name], *map(factors.outer.get, axes))
    for layer, layer_maps in enumerate(factors.layers):
        maps = layer_maps | factors.outer
        for name, axes in LAYER_AXES.items():
            blended = torch.sum(stacked[name] * factors.depth[name][layer], -1)
            large[f"bert.encoder.layer.{layer}.{name}"] = widen(blended, *map(maps.get, axes))
    return large


def backward(large: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
    """Pull the gradients of the large parameters back to the factors' `.grad`."""
    grown = {name: tensor for name, tensor in large.items() if tensor.requires_grad}
    torch.autograd.backward(list(grown.values()), [grads[name] for name in grown])
