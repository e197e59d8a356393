"""The tasks: a family of models, a small and a large size, data, and how long to train.

Text is bytes (the Python sources that are there anyway); images are scikit-learn's digits. The batch of a
step depends on the seed and the step alone, the validation data on whether a run is one of the search.
"""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from ligo_fast.demo.config import Config
from ligo_fast.demo.data import (
    SKIPPED_FOLDERS,
    VOCABULARY,
    Batches,
    Corpus,
    load_corpus,
    read_texts,
    split,
    to_tokens,
)
from ligo_fast.demo.train import build_gpt2, initial_spread
from ligo_fast.training.learning import model_loss

MASK = VOCABULARY  # BERT's mask token, one past the bytes
Part = Literal["training", "search", "report"]
SEARCH_SEED = 0  # of the runs that choose learning rates and warm-ups; all others are reported


@dataclass(frozen=True)
class Task:
    """One growth to study; `config` has sizes, steps and everything the training takes."""

    name: str
    family: str  # gpt2, llama, bert or vit
    config: Config
    corpus: str = "stdlib"  # or "installed": all Python sources of the environment
    brief_steps: int = 0  # steps of a small model trained only to be grown; 0: there is none
    autocast: bool = False  # products in bfloat16, weights in float32
    validation_seeds: tuple[int, int] = (999, 998)  # of the search, and of what is reported

    def model(self, large: bool, seed: int, device: torch.device) -> nn.Module:
        """A new model of the small or the large size."""
        c = replace(self.config, seed=seed)
        size = (c.width, c.depth) if large else (c.small_width, c.small_depth)
        return BUILD[self.family](*size, c, device)

    def batches(self, seed: int, rows: int, device: torch.device, part: Part = "training") -> Any:
        """Batches by step; those of learning an operator may have fewer rows."""
        if self.family == "vit":
            return Digits(part, rows, seed, device)
        text = read_corpus(self.corpus)
        kind = Masked if self.family == "bert" else Batches
        windows = text.train if part == "training" else text.validation
        return kind(windows, rows, self.config.length, seed, device)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The model's own loss, computed as the task says."""
        with self.products(batch):
            return model_loss(model, batch)

    def products(self, batch: dict[str, Tensor]) -> torch.autocast:
        """The context in which models compute: the dtype of products."""
        return torch.autocast(batch["labels"].device.type, torch.bfloat16, enabled=self.autocast)

    def validation(self, seed: int, device: torch.device) -> list[dict[str, Tensor]]:
        """The same for every method and every seed that is reported; the search has other data."""
        part: Part = "search" if seed == SEARCH_SEED else "report"
        drawn = dict(zip(("search", "report"), self.validation_seeds, strict=True))[part]
        return [self.batches(drawn, self.config.evaluate_batch, device, part)[0]]


class Masked(Batches):
    """Masked language modelling: a quarter of the bytes is hidden, and only those count."""

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        tokens = super().__getitem__(step)["input_ids"]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step + 7)
        hidden = (torch.rand(tokens.shape, generator=generator) < 0.25).to(tokens.device)
        return {"input_ids": tokens.masked_fill(hidden, MASK), "labels": tokens.masked_fill(~hidden, -100)}


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 8 x 8 digits; those of training are moved by up to a pixel."""

    part: Part
    rows: int
    seed: int
    device: torch.device

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        images, labels = digits(self.part)
        if self.part == "training":
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            chosen = torch.randint(len(images), (self.rows,), generator=generator)
            down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
            images, labels = images[chosen].roll((down, right), (2, 3)), labels[chosen]
        return {"pixel_values": images.to(self.device), "labels": labels.to(self.device)}


@cache
def digits(part: Part) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8) in -1 .. 1 and labels; two tenths are for the report, one is for the search."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(found.target)
    tenth = torch.arange(len(labels)) % 10
    report, search = tenth % 5 == 0, tenth == 1
    keep = {"training": ~(report | search), "search": search, "report": report}[part]
    return images[keep], labels[keep]


@cache
def read_corpus(name: str) -> Corpus:
    """Python's standard library, or every Python source installed beside it as well, without their tests."""
    if name == "stdlib":
        return load_corpus()
    documents = installed_sources()
    train, validation = split(documents)
    return Corpus(
        to_tokens(train), to_tokens(validation), f"{len(documents)} Python files of the environment"
    )


def installed_sources() -> dict[str, bytes]:
    """Every source once, however many files hold it: copies must not be trained and validated on."""
    names: dict[bytes, str] = {}
    for kind in ("stdlib", "purelib", "platlib"):
        folder = Path(sysconfig.get_paths()[kind])
        skipped = SKIPPED_FOLDERS if kind == "stdlib" else {"tests"}
        files = (f for f in folder.rglob("*.py") if not skipped & {*f.relative_to(folder).parts})
        for path, content in read_texts(folder, sorted(files)).items():
            names.setdefault(content, f"{kind}/{path}")
    return {name: content for content, name in names.items()}


def llama(width: int, depth: int, config: Config, device: torch.device) -> nn.Module:
    """Two query heads for each of keys and values; ffn 2.5 times the width."""
    torch.manual_seed(config.seed)
    heads = width // config.head_dim
    return LlamaForCausalLM(
        LlamaConfig(
            initializer_range=initial_spread(width),
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=width * 5 // 2,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            max_position_embeddings=config.length,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
    ).to(device)


def bert(width: int, depth: int, config: Config, device: torch.device) -> nn.Module:
    """Post-norm, without dropout."""
    torch.manual_seed(config.seed)
    return BertForMaskedLM(
        BertConfig(
            initializer_range=initial_spread(width),
            vocab_size=VOCABULARY + 1,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=depth,
            num_attention_heads=width // config.head_dim,
            max_position_embeddings=config.length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).to(device)


def vit(width: int, depth: int, config: Config, device: torch.device) -> nn.Module:
    """8 x 8 images in 4 patches, ten classes."""
    torch.manual_seed(config.seed)
    return ViTForImageClassification(
        ViTConfig(
            initializer_range=initial_spread(width),
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=10,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=depth,
            num_attention_heads=width // config.head_dim,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).to(device)


BUILD = {"gpt2": build_gpt2, "llama": llama, "bert": bert, "vit": vit}
