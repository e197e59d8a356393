"""What `benchmarks.gpu` grows: pairs of models as their parameters alone, so that no model library is needed.

Growing looks at parameters only. A `Skeleton` has those of a Hugging Face model, by the names and the axes of
the architecture's table. Only the learning step needs a real model, from transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import ligo_fast as lf
from benchmarks.models import PAPER, Gpt2Pair, Pair
from ligo_fast.architectures import registered
from ligo_fast.tables import parse

DTYPES = {"tf32": torch.float32, "bf16": torch.bfloat16}  # of the weights, by the precision of products


class Skeleton(nn.Module):
    """The parameters of a model of a registered architecture, and nothing that computes."""

    def __init__(
        self,
        name: str,
        config: dict[str, int],
        fixed: dict[str, int],
        leave_out: tuple[str, ...],
        **kind: Any,
    ) -> None:
        super().__init__()
        table = registered(name)
        self.config = SimpleNamespace(model_type=name, layer_norm_eps=1e-5, **config)
        self.config.layer_norm_epsilon = self.config.rms_norm_eps = 1e-5
        sizes = table.read_sizes(self)
        for axis, product in table.axes.items():
            sizes[axis] = math.prod(sizes[factor.partition(".")[0]] for factor in product.split("*"))
        known = sizes | fixed
        for pattern, dims in table.parameters.items():
            if any(word in pattern for word in leave_out):
                continue
            shape = [sum(known[term.axis] for term in terms) for terms in parse(dims)]
            for layer in range(sizes["layer"] if "*" in pattern else 1):
                self._put(pattern.replace("*", str(layer)), torch.empty(shape, **kind))

    def _put(self, name: str, values: torch.Tensor) -> None:
        module: nn.Module = self
        *path, last = name.split(".")
        for key in path:
            if key not in module._modules:
                module.add_module(key, nn.Module())
            module = module.get_submodule(key)
        module.register_parameter(last, nn.Parameter(values))


@dataclass(frozen=True)
class Growth:
    """A pair to measure: configs of both sizes, sizes that stay, and parameters that the models lack."""

    architecture: str
    small: dict[str, int]
    large: dict[str, int]
    fixed: dict[str, int]
    leave_out: tuple[str, ...] = ()  # parts of names: tied heads, and what a base model does not have
    step: Pair | None = None  # the models and the batch of the learning step
    rates: dict[str, int] = field(default_factory=lambda: {"matmul_size": 8192, "copy_megabytes": 2048})

    def build(self, dtype: torch.dtype, device: torch.device) -> tuple[Skeleton, Skeleton]:
        """Random small weights; the large ones are not a number until an operator writes them."""
        torch.manual_seed(0)
        models = [
            Skeleton(self.architecture, config, self.fixed, self.leave_out, dtype=dtype, device=device)
            for config in (self.small, self.large)
        ]
        for name, p in models[0].named_parameters():
            nn.init.normal_(p, mean=float(p.dim() == 1 and name.endswith("weight")), std=0.02)
        for p in models[1].parameters():
            nn.init.constant_(p, math.nan)
        return models[0], models[1]

    def operator(self, dtype: torch.dtype, device: torch.device) -> lf.GrowthOperator:
        """The paper's LiGO between them; every parameter of the large model has a random gradient."""
        op = ligo(*self.build(dtype, device))
        for p in op.large.parameters():
            p.grad = torch.randn_like(p)
        return op


def ligo(small: nn.Module, large: nn.Module) -> lf.GrowthOperator:
    """The paper's operator: V = U, rows of C that sum to one."""
    return lf.GrowthOperator(small, large, method="ligo", seed=0, tie=True, width_init="random")


def _bert(layers: int, hidden: int, head_dim: int = 64) -> dict[str, int]:
    names = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": hidden // head_dim}
    return names | {"intermediate_size": 4 * hidden}


def _gpt2(layers: int, hidden: int, head_dim: int = 64) -> dict[str, int]:
    return {"n_layer": layers, "n_embd": hidden, "n_head": hidden // head_dim, "n_inner": 4 * hidden}


def llama_config(layers: int, hidden: int, kv_heads: int, head_dim: int, ffn: int) -> dict[str, int]:
    names = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": hidden // head_dim}
    return names | {"num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": ffn}


NO_HEAD = ("lm_head", "score")
TIED_BERT = ("pooler", "decoder", "classifier", "seq_relationship")
BIAS = ("proj.bias", "_norm.weight")  # of Qwen's projections, and its norms of heads
GPT2 = Gpt2Pair((12, 768), (24, 1024), 64, 50257, sequences=8, length=1024, matmul_size=0, copy_megabytes=0)

ROWS = {  # titles and precisions: `gpu_table.ROWS`
    "bert": Growth(
        "bert", _bert(6, 512), _bert(12, 768),
        {"vocab": 30522, "position": 512, "segment": 2}, TIED_BERT,
        replace(PAPER, sequences=64, length=128),
    ),
    "gpt2": Growth(
        "gpt2", _gpt2(12, 768), _gpt2(24, 1024),
        {"vocab": 50257, "position": 1024}, NO_HEAD, GPT2,
    ),
    "llama": Growth(
        "llama",
        llama_config(22, 2048, 4, 128, 5632), llama_config(32, 4096, 8, 128, 14336),
        {"vocab": 32000}, (*BIAS, "score"),
    ),
}  # fmt: skip

# On a CPU under Triton's interpreter, which takes milliseconds a program. Float32 only: that of triton 3.7
# multiplies bfloat16 numbers as if they were integers, and cuts them off instead of rounding.
TINY = {"matmul_size": 64, "copy_megabytes": 1}
TINY_GPT2 = Gpt2Pair((1, 8), (2, 12), 4, 11, sequences=2, length=8, matmul_size=0, copy_megabytes=0)
REHEARSAL = {
    "gpt2": Growth(
        "gpt2", _gpt2(1, 8, 4), _gpt2(2, 12, 4), {"vocab": 11, "position": 8}, NO_HEAD,
        TINY_GPT2, TINY,
    ),
    "llama": Growth(
        "llama", llama_config(1, 8, 1, 4, 12), llama_config(2, 16, 2, 4, 20), {"vocab": 11},
        (*BIAS, "score"), rates=TINY,
    ),
}  # fmt: skip
