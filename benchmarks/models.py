"""The pairs of Hugging Face models that the benchmarks grow, and the work that growing them takes."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:  # a GPU box may lack it; only building a model needs it
    from transformers import BertForMaskedLM, GPT2LMHeadModel


@dataclass(frozen=True)
class Pair:
    """Sizes: (layers, hidden) of a small and a large BERT, a batch, and the rates' matrix and copy."""

    small: tuple[int, int]
    large: tuple[int, int]
    head_dim: int
    vocab: int
    sequences: int
    length: int
    matmul_size: int
    copy_megabytes: int

    def build(self, seed: int = 0) -> tuple[nn.Module, nn.Module]:
        """Both models with random weights, in float32 and without dropout."""
        torch.manual_seed(seed)
        return self._model(*self.small), self._model(*self.large)

    def _model(self, layers: int, hidden: int) -> BertForMaskedLM:
        from transformers import BertConfig, BertForMaskedLM

        config = BertConfig(
            vocab_size=self.vocab,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // self.head_dim,
            intermediate_size=4 * hidden,
            max_position_embeddings=4 * self.length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = BertForMaskedLM(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, mean=float(name.endswith("LayerNorm.weight")), std=0.02)
        return model

    def facts(self) -> dict[str, object]:
        """The sizes, for the report."""
        return asdict(self)


@dataclass(frozen=True)
class Gpt2Pair(Pair):
    """The same sizes as GPT-2 models."""

    def _model(self, layers: int, hidden: int) -> GPT2LMHeadModel:  # type: ignore[override]
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=self.vocab,
            n_embd=hidden,
            n_layer=layers,
            n_head=hidden // self.head_dim,
            n_positions=self.length,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        return GPT2LMHeadModel(config)


PAPER = Pair((6, 512), (12, 768), 64, 30522, sequences=32, length=128, matmul_size=3072, copy_megabytes=256)
QUICK = Pair((2, 32), (4, 48), 16, 64, sequences=2, length=8, matmul_size=128, copy_megabytes=1)


def expand_flops(small: tuple[int, ...], large: tuple[int, ...]) -> int:
    """FLOPs of growing one parameter's width, in dimension first: 2 (o1 i1 (i2-i1) + (o2-o1) o1 i2)."""
    out_small, in_small = small[0], prod(small[1:])
    out_large, in_large = large[0], prod(large[1:])
    return 2 * (out_small * in_small * (in_large - in_small) + (out_large - out_small) * out_small * in_large)


def design_flops(small: nn.Module, large: nn.Module) -> int:
    """The sum of `expand_flops` over every parameter of the large model, tied ones once."""
    shapes = {name: tuple(parameter.shape) for name, parameter in small.named_parameters()}
    source = {name: re.sub(r"\.layer\.\d+\.", ".layer.0.", name) for name, _ in large.named_parameters()}
    return sum(expand_flops(shapes[source[n]], tuple(p.shape)) for n, p in large.named_parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of a module's parameters, tied ones once."""
    return sum(parameter.nbytes for parameter in model.parameters())
