"""What learning an operator with released gradients holds at its peak, on paper: from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.models import parameter_bytes
from ligo_fast.architectures import architecture_of
from ligo_fast.bench.cases import CASES, Case
from ligo_fast.models.tables import read_axes


@dataclass(frozen=True)
class Sizes:
    """One Llama: layers, hidden, key/value heads and ffn."""

    layers: int
    hidden: int
    kv_heads: int
    ffn: int


@dataclass(frozen=True)
class LlamaPair:
    """Two Llama models and the tokens of a step."""

    small: Sizes
    large: Sizes
    head_dim: int
    vocab: int
    tokens: int
    dtype: torch.dtype = torch.float32

    @staticmethod
    def of(case: Case, tokens: int) -> LlamaPair:
        """The models of a case."""
        small, large = (
            Sizes(c["num_hidden_layers"], c["hidden_size"], c["num_key_value_heads"], c["intermediate_size"])
            for c in (case.pair.small, case.pair.large)
        )
        both = case.pair.large
        return LlamaPair(small, large, both["head_dim"], both["vocab_size"], tokens, case.dtype)

    def model(self, sizes: Sizes, device: torch.device | str) -> nn.Module:
        """Untied, with random weights, unless on the meta device."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=self.vocab, hidden_size=sizes.hidden, num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.hidden // self.head_dim, num_key_value_heads=sizes.kv_heads,
            head_dim=self.head_dim, intermediate_size=sizes.ffn, max_position_embeddings=self.tokens,
            tie_word_embeddings=False, use_cache=False, dtype=self.dtype,
        )  # fmt: skip
        with torch.device(device):
            return LlamaForCausalLM(config).to(self.dtype)

    def batch(self, device: torch.device | str) -> dict[str, torch.Tensor]:
        tokens = torch.randint(self.vocab, (1, self.tokens), generator=torch.Generator().manual_seed(0))
        return {"input_ids": tokens.to(device), "labels": tokens.to(device)}


SEVEN_B = LlamaPair.of(CASES["llama-7b"], tokens=4096)
ON_A_CPU = LlamaPair(Sizes(4, 256, 2, 688), Sizes(12, 640, 5, 1720), 64, 4096, tokens=128)
BLOCK = 128 << 20  # bytes of a block of rows on a GPU; on a CPU it is 16 MiB
TINY = LlamaPair(Sizes(1, 16, 1, 24), Sizes(3, 32, 2, 48), 8, 32, tokens=16)


def moments(pair: LlamaPair, on_disk: bool = False) -> dict[str, dict[str, int]]:
    """Bytes that learning holds on a GPU where backward begins, inside a layer and in writing the weights.

    From shapes alone.

    Factors are the paper's (V = U): C of every growing axis and D of every family, in float32, with AdamW's
    two moments; a factor gets a gradient with the first of its parameters, the residual stream's C with the
    output head. The gradient is that of the head or of the largest parameter of a layer. The work on it is a
    block and, inside a layer, four matrices of the small parameter's size in float32. Activations: the
    checkpoints of every layer; and the logits in the weights' dtype and in float32, with their gradients, or
    the recomputed layer (its ffn three times, attention and residuals twelve times the hidden size).

    Args:
        on_disk: the small model's weights are not held: backward reads what it needs off the grown ones, and
            torch writes those.
    """
    small, large = (pair.model(sizes, "meta") for sizes in (pair.small, pair.large))
    factors, item, hidden = _factors(small, large), pair.dtype.itemsize, pair.large.hidden
    shared = {
        "large weights": parameter_bytes(large),
        "small weights": 0 if on_disk else parameter_bytes(small),
        "factors and their moments": 3 * 4 * factors,
        "checkpoints": pair.large.layers * pair.tokens * hidden * item,
    }
    inner = [max(p.numel() for n, p in m.named_parameters() if ".layers." in n) for m in (small, large)]
    return {
        "output head": shared | {
            "factors' gradients": 4 * (hidden - pair.small.hidden) * pair.small.hidden,
            "one gradient": large.get_parameter("lm_head.weight").nbytes,
            "work on it": BLOCK,
            "logits or one layer": pair.tokens * pair.vocab * (2 * item + 2 * 4),
        },
        "layer": shared | {
            "factors' gradients": 4 * factors,
            "one gradient": inner[1] * item,
            "work on it": 4 * 4 * inner[0] + BLOCK,
            "logits or one layer": pair.tokens * item * (12 * hidden + 3 * pair.large.ffn),
        },
        "writing": shared | {
            "checkpoints": 0,
            "factors' gradients": 4 * factors,
            "work on it": BLOCK + inner[0] * pair.small.layers * item if on_disk else apply_workspace(pair),
        },
    }  # fmt: skip


def accounting(pair: LlamaPair, on_disk: bool = False) -> dict[str, int]:
    """What learning holds at its peak: the largest of the `moments`."""
    return max(moments(pair, on_disk).values(), key=lambda held: sum(held.values()))


def paper_goal(pair: LlamaPair) -> int:
    """`limit` on paper: the weights, the activations and one layer's gradients, and 5%."""
    large, held = pair.model(pair.large, "meta"), moments(pair)["output head"]
    activations = held["checkpoints"] + max(m.get("logits or one layer", 0) for m in moments(pair).values())
    layer = parameter_bytes(large.get_submodule("model.layers.0"))
    return int(1.05 * (held["large weights"] + activations + layer))


def apply_workspace(pair: LlamaPair, limit: int = 1 << 30) -> int:
    """Bytes that the kernels write the weights in, and give back when they have.

    A family, all layers of `up_proj` say, takes its new units on the small model's layers. Beyond `limit` or
    an eighth of the large model, whichever is more, families go in waves of about equal size
    (`backend_triton`), and the largest wave counts: it is never less than the largest family.
    """
    small, large = (pair.model(sizes, "meta") for sizes in (pair.small, pair.large))
    old = dict(small.named_parameters())
    sizes = []
    for name, p in large.named_parameters():
        if ".layers.0." in name:
            layer = (p.numel() - old[name].numel()) * pair.dtype.itemsize
            sizes.append(pair.small.layers * -(-layer // 256) * 256)
    limit = max(limit, parameter_bytes(large) // 8)
    waves = [0] * -(-sum(sizes) // limit)
    for size in sorted(sizes, reverse=True):
        waves[waves.index(min(waves))] += size
    return max(waves)


def _factors(small: nn.Module, large: nn.Module) -> int:
    """How many numbers the paper's operator has between two models, by their axes."""
    architecture = architecture_of(large)
    axes = read_axes(architecture, small, large)
    sizes: dict[tuple[str, str], int] = {}
    for axis in axes.values():
        for part in axis.factors if axis.factors and axis.rotary else (axis,):
            if part.grows:
                sizes[part.name, part.tag] = (part.large - part.small) * part.small
    names = {n.replace(".0.", ".*.", 1) for n, _ in large.named_parameters() if ".0." in n}
    layers = axes["layer"]
    width = sum(n for (axis, _), n in sizes.items() if axis not in ("layer", "head", "kv_head")) + sum(
        n for (axis, tag), n in sizes.items() if axis in ("head", "kv_head") and tag
    )
    return width + (len(names) * layers.large * layers.small if layers.grows else 0)
