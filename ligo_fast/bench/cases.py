"""The one list of what is grown in benchmarks, in the tables and by `ligo-fast bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..maps import Dense, Identity, Map, PrefixDiagonal, Selection
from ..operator import GrowthOperator
from .models import Pair, Size, pair, with_values

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """What is grown, and how.

    Attributes:
        title: for tables, without method and dtype.
        method: see `ligo_fast.methods.names()`; "ligo" is the paper's: V = U, rows of C that sum to one.
        dtype: of both models' weights.
        group: the table it is a row of: growth, select, scaling, or tiny ones that try a benchmark itself.
        batch: sequences and their length, of a learning step; None where there is none.
    """

    name: str
    title: str
    pair: Pair
    method: str = "ligo"
    dtype: torch.dtype = torch.float32
    group: str = ""
    batch: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        """Of both models' weights: what growing reads and writes at least."""
        return sum(self.pair.parameters()) * self.dtype.itemsize

    def operator(self, device: torch.device | str = "cpu") -> GrowthOperator:
        """The operator between models of random weights."""
        small, large = self.pair.build(self.dtype, device)
        return ligo(small, large) if self.method == "ligo" else GrowthOperator(small, large, self.method)

    def facts(self) -> dict[str, Any]:
        """For a report."""
        small, large = self.pair.parameters()
        return {
            "title": self.title, "method": self.method, "dtype": str(self.dtype).removeprefix("torch."),
            "family": self.pair.family, "small": self.pair.small, "large": self.pair.large,
            "parameters": [small, large], "bytes": self.nbytes,
        }  # fmt: skip


def ligo(small: nn.Module, large: nn.Module, **options: Any) -> GrowthOperator:
    """The paper's operator: V = U, rows of C that sum to one."""
    return GrowthOperator(small, large, method="ligo", seed=0, tie=True, width_init="random", **options)


def sizes(small: Size, large: Size) -> str:
    """For a title."""
    return f"{small} to {large}"


def _selections(prefix: str, scale: int, group: str, **values: int) -> list[Case]:
    """A Llama of 6 layers to one of 12 of 768, by training-free methods; hidden units 1/scale of that."""
    found = []
    for name, method, hidden in (
        ("stack", "stack", 768), ("copy", "copy+stack", 512), ("net2net", "net2net+stack", 512),
        ("aki", "aki+stack", 512), ("tile", "tile+stack", 384), ("pad", "pad+zero", 512),
    ):  # fmt: skip
        small, large = (6, hidden // scale), (12, 768 // scale)
        title = f"Llama-style {sizes(small, large)}"
        two_heads_a_group = [{"num_key_value_heads": h // (128 // scale)} for _, h in (small, large)]
        models = with_values(pair("llama", small, large, 64 // scale, **values), *two_heads_a_group)
        found.append(Case(prefix + name, title, models, method, group=group))
    return found


def _scaling() -> list[Case]:
    """Llama-style models from 10M to 7B parameters, each from one of about half its size."""
    found = []
    for name, small, large, vocab, dtype in (
        ("10m", (6, 192), (8, 256), 8192, "float32"), ("30m", (8, 320), (10, 448), 8192, "float32"),
        ("100m", (6, 576), (8, 768), 32000, "float32"), ("300m", (15, 832), (20, 1024), 32000, "float32"),
        ("1b", (18, 1408), (24, 1792), 32000, "float32"), ("3b", (22, 2304), (30, 2816), 32000, "bfloat16"),
        ("7b", (24, 3200), (32, 4096), 32000, "bfloat16"),
    ):  # fmt: skip
        models = pair("llama", small, large, vocab=vocab)
        for suffix, method in (("ligo", "ligo"), ("net2net", "net2net+stack")):
            title = f"Llama-style {name.upper()} {sizes(small, large)}"
            found.append(Case(f"{name}-{suffix}", title, models, method, DTYPES[dtype], "scaling"))
    return found


BERT = pair("bert", (6, 512), (12, 768))
GPT2 = pair("gpt2", (12, 768), (24, 1024))
LLAMA_7B = with_values(  # TinyLlama's sizes and those of a 7B model with grouped queries
    pair("llama", (22, 2048), (32, 4096), 128),
    {"num_key_value_heads": 4, "intermediate_size": 5632},
    {"num_key_value_heads": 8, "intermediate_size": 14336},
)
BF16 = torch.bfloat16
CASES: dict[str, Case] = {
    case.name: case
    for case in [
        # in the order of measuring on a GPU: the most telling first, in case time runs out
        Case("bert", "BERT (6, 512) to (12, 768)", BERT, group="growth", batch=(64, 128)),
        Case("gpt2", "GPT-2 (12, 768) to (24, 1024)", GPT2, group="growth", batch=(8, 1024)),
        Case("llama-7b", "Llama-style 1.1B (22, 2048) to 7B (32, 4096)", LLAMA_7B, "ligo", BF16, "growth"),
        Case("bert-bf16", "BERT (6, 512) to (12, 768)", BERT, "ligo", BF16, "growth", (64, 128)),
        Case("gpt2-bf16", "GPT-2 (12, 768) to (24, 1024)", GPT2, "ligo", BF16, "growth", (8, 1024)),
        *_selections("", 1, "select"),
        *_scaling(),
        # tiny, to try a benchmark itself; on a CPU Triton's interpreter takes milliseconds a program
        Case("tiny-bert", "tiny BERT", pair("bert", (2, 32), (4, 48), 16, 64, max_position_embeddings=32),
             group="tiny", batch=(2, 8)),
        Case("tiny-gpt2", "tiny GPT-2", pair("gpt2", (1, 8), (2, 12), 4, 11, n_positions=8),
             group="tiny", batch=(2, 8)),
        Case("tiny-llama", "tiny Llama", with_values(
            pair("llama", (1, 8), (2, 16), 4, 11),
            {"num_key_value_heads": 1, "intermediate_size": 12},
            {"num_key_value_heads": 2, "intermediate_size": 20},
        ), group="tiny"),
        *_selections("tiny-", 16, "tiny select", vocab=64),
    ]
}  # fmt: skip


@dataclass(frozen=True)
class OpCase:
    """One call of `ligo_fast.ops.grow` with one kind of map; sizes are (small, large).

    Attributes:
        kind: "blend" mixes layers, "expand" is two products by [I; C], "select" takes units and scales them.
    """

    kind: str
    layers: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    def maps(self, seed: int = 0) -> tuple[Map, Map, Map]:
        """D, U and V."""
        generator = torch.Generator().manual_seed(seed)
        l1, l2 = self.layers
        if self.kind == "blend":
            depth = torch.randn(l2, l1, generator=generator)
            return Dense(depth), Identity(self.rows[0]), Identity(self.columns[0])
        sides: list[Map] = []
        for small, large in (self.rows, self.columns):
            if self.kind == "expand":
                sides.append(PrefixDiagonal(torch.randn(large - small, small, generator=generator)))
            else:
                new = torch.randint(small, (large - small,), generator=generator)
                index = torch.cat([torch.arange(small), new])
                sides.append(Selection(index, small, 1 / index.bincount(minlength=small)[index]))
        depth_index = torch.arange(l2) % l1
        depth_map = Identity(l1) if self.kind == "expand" else Selection(depth_index, l1)
        return depth_map, sides[0], sides[1]

    def stack(self, seed: int = 0) -> torch.Tensor:
        """The small layers."""
        shape = self.layers[0], self.rows[0], self.columns[0]
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


OPS = {  # of BERT (6, 512) to (12, 768): a feed-forward matrix, and one of attention
    "blend": OpCase("blend", (6, 12), (2048, 2048), (512, 512)),
    "expand": OpCase("expand", (6, 6), (2048, 3072), (512, 768)),
    "expand-attention": OpCase("expand", (6, 6), (512, 768), (512, 768)),
    "select": OpCase("select", (6, 12), (2048, 3072), (512, 768)),
    "tiny-blend": OpCase("blend", (2, 5), (9, 9), (7, 7)),
    "tiny-expand": OpCase("expand", (2, 2), (9, 13), (7, 8)),
    "tiny-select": OpCase("select", (2, 5), (9, 13), (7, 8)),
}


def group(name: str) -> dict[str, Case]:
    """The cases of one table."""
    return {case.name: case for case in CASES.values() if case.group == name}
