"""Tiny Hugging Face models of every covered family, with random parameters so that nothing is 0 or 1."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import nn

import ligo_fast as lf

VOCAB, POSITIONS = 19, 10
EPS = 0.02  # of every norm: large enough that a mistake in it shows

GPT2 = {
    "n_embd": 8, "n_head": 2, "n_layer": 2, "n_inner": 12, "vocab_size": VOCAB, "n_positions": POSITIONS,
    "layer_norm_epsilon": EPS,
}  # fmt: skip
BERT = {
    "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12,
    "vocab_size": VOCAB, "max_position_embeddings": POSITIONS, "layer_norm_eps": EPS,
}  # fmt: skip
ROBERTA = {**BERT, "pad_token_id": 1, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}
LLAMA = {
    "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 12, "vocab_size": VOCAB, "max_position_embeddings": POSITIONS, "rms_norm_eps": EPS,
}  # fmt: skip
QWEN3 = {**LLAMA, "hidden_size": 12, "head_dim": 4}
VIT = {
    "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12,
    "image_size": 8, "patch_size": 4, "num_channels": 3, "num_labels": 5, "layer_norm_eps": EPS,
}  # fmt: skip
WIDER = {  # half as wide again, with heads of the same size
    "gpt2": {"n_embd": 12, "n_head": 3, "n_inner": 20},
    "bert": {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20},
    "vit": {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20},
    "llama": {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 20},
}
TWICE = {  # whole multiples of every axis
    "gpt2": {"n_embd": 16, "n_head": 4, "n_inner": 24},
    "bert": {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24},
    "vit": {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24},
    "llama": {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 24},
}
NO_DROPOUT = {
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "attention_dropout",
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """A model class, its config's class and the sizes."""

    cls: Any
    config: Any
    sizes: dict[str, Any] = field(default_factory=dict)

    def make_config(self, **overrides: Any) -> Any:
        config = self.config(**{**self.sizes, **overrides})
        for name in NO_DROPOUT & set(vars(config)):
            setattr(config, name, 0.0)
        return config


TINY = {
    "gpt2-lm": Tiny(hf.GPT2LMHeadModel, hf.GPT2Config, GPT2),
    "gpt2": Tiny(hf.GPT2Model, hf.GPT2Config, GPT2),
    "bert-mlm": Tiny(hf.BertForMaskedLM, hf.BertConfig, BERT),
    "bert": Tiny(hf.BertModel, hf.BertConfig, BERT),
    "roberta-mlm": Tiny(hf.RobertaForMaskedLM, hf.RobertaConfig, ROBERTA),
    "roberta": Tiny(hf.RobertaModel, hf.RobertaConfig, ROBERTA),
    "llama-lm": Tiny(hf.LlamaForCausalLM, hf.LlamaConfig, {**LLAMA, "tie_word_embeddings": False}),
    "llama-tied": Tiny(hf.LlamaForCausalLM, hf.LlamaConfig, {**LLAMA, "tie_word_embeddings": True}),
    "llama": Tiny(hf.LlamaModel, hf.LlamaConfig, LLAMA),
    "mistral-lm": Tiny(hf.MistralForCausalLM, hf.MistralConfig, LLAMA),
    "qwen2-lm": Tiny(hf.Qwen2ForCausalLM, hf.Qwen2Config, LLAMA),
    "qwen3-lm": Tiny(hf.Qwen3ForCausalLM, hf.Qwen3Config, {**QWEN3, "tie_word_embeddings": True}),
    "vit-class": Tiny(hf.ViTForImageClassification, hf.ViTConfig, VIT),
    "vit": Tiny(hf.ViTModel, hf.ViTConfig, VIT),
    "deit-class": Tiny(hf.DeiTForImageClassification, hf.DeiTConfig, VIT),
    "deit-teacher": Tiny(hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, VIT),
    "deit": Tiny(hf.DeiTModel, hf.DeiTConfig, VIT),
}
POST_NORM = ("bert", "roberta")
ROTARY = ("llama", "mistral", "qwen2", "qwen3")
IMAGE = ("vit", "deit")


def family(name: str) -> str:
    """The model family of a name: "llama-tied" is of family "llama"."""
    return name.split("-")[0]


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> nn.Module:
    """A tiny model in eval mode; every parameter (norms and biases too) is random."""
    tiny = TINY[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tiny.cls(tiny.make_config(**overrides)).to(dtype).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.3)
    return model


def on_meta(model: nn.Module) -> nn.Module:
    """A model of the same class and sizes without memory."""
    with torch.device("meta"):
        return type(model)(model.config).to(next(model.parameters()).dtype)


def build_wider(
    name: str, layers: int, dtype: torch.dtype = torch.float32, sizes: dict[str, dict[str, int]] = WIDER
) -> nn.Module:
    """Another model of the name's class, with the sizes of its family and so many layers."""
    layer = "n_layer" if family(name) == "gpt2" else "num_hidden_layers"
    return build(name, 1, dtype, **{**sizes[family(name)], layer: layers})


def make_batch(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, rows: int = 2) -> dict[str, Any]:
    """Keyword arguments for a model; those of a model with a loss have labels."""
    rng = torch.Generator().manual_seed(seed)
    if family(name) in IMAGE:
        batch = {"pixel_values": torch.randn(rows, 3, 8, 8, generator=rng, dtype=torch.float64).to(dtype)}
        if name in ("vit-class", "deit-class"):
            batch["labels"] = torch.randint(5, (rows,), generator=rng)
        return batch
    ids = torch.randint(3, VOCAB, (rows, 7), generator=rng)
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    return {**batch, "labels": ids} if name.endswith(("-lm", "-mlm", "-tied")) else batch


def output(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Logits, or the last hidden state of a model without a head."""
    out = model(**batch)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def loss_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The model's own loss, or the mean square of its output."""
    out = model(**batch)
    loss = getattr(out, "loss", None)
    return output_loss(out) if loss is None else loss


def output_loss(out: Any) -> torch.Tensor:
    value = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return (value * torch.linspace(-1, 1, value.shape[-1], dtype=value.dtype)).square().mean()


def grow_copy(small: nn.Module, factor: int = 2, depth: int = 3, seed: int = 0) -> nn.Module:
    """A large model to learn: wider and deeper, in the small one's dtype."""
    return lf.grow(small, width=factor * small.config.hidden_size, depth=depth, method="copy", seed=seed)


def train(model: nn.Module, opt: Any, steps: int, first: int = 0, name: str = "gpt2-lm") -> list[float]:
    """Ordinary steps on batches of the seeds `first`, `first` + 1, ...; the losses."""
    losses = []
    for seed in range(first, first + steps):
        loss = loss_of(model, make_batch(name, seed=seed))
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of every parameter and buffer."""
    return {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}


def same(before: dict[str, torch.Tensor], model: nn.Module) -> bool:
    """Whether a model's parameters and buffers are bitwise what they were."""
    now = snapshot(model)
    return before.keys() == now.keys() and all(torch.equal(before[n], now[n]) for n in now)


@contextlib.contextmanager
def exact_rms_norm():
    """HF's RMSNorm computes in float32 whatever the input; in float64 tests its rounding would hide ours."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.mistral.modeling_mistral import MistralRMSNorm
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    classes = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
    originals = [c.forward for c in classes]
    for c in classes:
        c.forward = forward
    try:
        yield
    finally:
        for c, original in zip(classes, originals, strict=True):
            c.forward = original
