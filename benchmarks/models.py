"""Real models of the cases, for steps of learning, and the work of growing by the design's formula."""

from __future__ import annotations

import re
from dataclasses import asdict
from math import prod
from typing import Any

import torch
from torch import nn

from ligo_fast.bench.cases import Case
from ligo_fast.bench.measure import parameter_bytes

__all__ = ["build", "design_flops", "expand_flops", "facts", "parameter_bytes"]
NO_DROPOUT = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
}


def build(case: Case, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Both models of a case from transformers, with random weights, in float32 and without dropout."""
    torch.manual_seed(seed)
    return model(case, case.pair.small), model(case, case.pair.large)


def model(case: Case, config: dict[str, Any]) -> nn.Module:
    """One of them: with a head for masked tokens, or for the next one."""
    import transformers

    family = case.pair.family
    values = config | dict.fromkeys(NO_DROPOUT.get(family, ()), 0.0)
    auto = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    made: nn.Module = auto.from_config(transformers.AutoConfig.for_model(family, **values))
    for name, parameter in made.named_parameters():
        if family == "bert" and parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(name.endswith("LayerNorm.weight")), std=0.02)
    return made


def facts(case: Case) -> dict[str, object]:
    """The sizes, for the report."""
    return asdict(case.pair) | {"batch": case.batch}


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
