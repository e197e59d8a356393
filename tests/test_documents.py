"""The code in docs/adding-a-method.md and docs/adding-a-model.md, as it stands there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import ligo_fast as lf
from ligo_fast import architectures, methods
from ligo_fast.checkpoint import grow_checkpoint

DOCS = Path(__file__).parents[1] / "docs"


@dataclass
class Config:
    width: int = 16
    depth: int = 2
    heads: int = 2
    hidden: int = 24
    eps: float = 1e-5


class Block(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads = c.heads
        self.norm1, self.norm2 = (nn.LayerNorm(c.width, c.eps) for _ in range(2))
        self.qkv, self.proj = (nn.Linear(c.width, n * c.width, bias=False) for n in (3, 1))
        self.up = nn.Linear(c.width, c.hidden, bias=False)
        self.down = nn.Linear(c.hidden, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TinyGPT(nn.Module):
    """What docs/adding-a-model.md has a table of."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tokens, self.positions = nn.Embedding(11, config.width), nn.Embedding(9, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Copies, so that what a document registers is gone after it."""
    monkeypatch.setattr(architectures, "_REGISTRY", dict(architectures._REGISTRY))
    monkeypatch.setattr(methods, "WIDTH", dict(methods.WIDTH))
    monkeypatch.setattr(methods, "DEPTH", dict(methods.DEPTH))
    yield


def run(document: str, **names: Any) -> dict[str, Any]:
    """What a document's code defines, given these names."""
    [code] = re.findall(r"```python\n(.*?)```", (DOCS / document).read_text(), re.DOTALL)
    exec(code, names)
    return names


def test_a_method_as_the_document_adds_it() -> None:
    small = models.build("gpt2-lm", n_embd=64, n_head=4, n_inner=None, n_layer=3)
    large = run("adding-a-method.md", small=small)["large"]
    index = torch.cat([torch.arange(64), torch.arange(63, 31, -1)])
    assert torch.equal(large.transformer.wte.weight, small.transformer.wte.weight[:, index])
    for n, j in enumerate([0, 1, 2, 2, 1, 0]):
        bias = small.transformer.h[j].ln_1.bias[index]
        assert torch.equal(large.transformer.h[n].ln_1.bias, bias)


def test_a_model_as_the_document_adds_it(tmp_path: Path) -> None:
    """In memory, and from a folder of its weights."""
    config = Config(width=256, heads=4, hidden=64, depth=4)
    run("adding-a-model.md", TinyGPT=TinyGPT, config=config)
    small = TinyGPT(Config()).double()
    large = lf.grow(small, width=32, depth=4, method="tile+zero")
    certificate = lf.certify(small, large, torch.arange(9)[None])
    assert certificate.exact and "function kept" in str(certificate)

    (tmp_path / "small").mkdir()
    stated = asdict(small.config) | {"model_type": "tiny-gpt", "architectures": ["TinyGPT"]}
    (tmp_path / "small" / "config.json").write_text(json.dumps(stated))
    save_file(small.state_dict(), tmp_path / "small" / "model.safetensors")
    grow_checkpoint(tmp_path / "small", tmp_path / "out", width=32, depth=4, method="tile+zero")
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(got[name], w) for name, w in large.state_dict().items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden"] == 48


@pytest.mark.parametrize(("package", "known"), [(methods, "WIDTH"), (architectures, "_REGISTRY")])
def test_a_file_in_the_package_is_all_it_needs(package: Any, known: str) -> None:
    """Every file there is imported, and every name comes from one."""
    files = {p.stem for p in Path(package.__file__).parent.glob("*.py")} - {"__init__"}
    assert files <= vars(package).keys() and len(getattr(package, known)) >= 4
