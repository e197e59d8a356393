"""Peak memory of learning an operator beside plain AdamW training: `python -m benchmarks.learning_memory`.

Llama models with activation checkpointing and a batch of one sequence; learning releases gradients
(`GrowthOptimizer(release_grads=True)`), with the small model in memory or in a folder on the disk. On a CPU
the resident size counts, each variant in a fresh process; on a GPU what torch allocated. `accounting` is the
same on paper, from shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

import ligo_fast as lf
from benchmarks.measure import hardware, provenance, summarize, versions
from benchmarks.memory import ALLOCATOR
from benchmarks.models import parameter_bytes
from ligo_fast.architectures import architecture_of
from ligo_fast.bench.cases import CASES, Case, ligo
from ligo_fast.bench.timing import resident, status_bytes
from ligo_fast.tables import read_axes

RESULTS = Path(__file__).parent / "results" / "learning_memory.json"
ON_DISK = "learning, the small model on disk"
VARIANTS = ("plain AdamW", "learning", ON_DISK)


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


# on paper


def moments(pair: LlamaPair, on_disk: bool = False) -> dict[str, dict[str, int]]:
    """Bytes that learning holds where backward begins and inside a layer, from shapes alone (meta device).

    Factors are the paper's (V = U): C of every growing axis and D of every family, in float32, with AdamW's
    two moments; a factor gets a gradient with the first of its parameters, the residual stream's C with the
    output head. The gradient is that of the head or of the largest parameter of a layer. The work on it is a
    block and, inside a layer, four matrices of the small parameter's size in float32. Activations: the
    checkpoints of every layer; and the logits in the weights' dtype and in float32, with their gradients, or
    the recomputed layer (its ffn three times, attention and residuals twelve times the hidden size).

    Args:
        on_disk: the small model's weights are not held: backward reads what it needs off the grown ones.
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
    }  # fmt: skip


def accounting(pair: LlamaPair, on_disk: bool = False) -> dict[str, int]:
    """What learning holds at its peak: the larger of the two `moments`."""
    return max(moments(pair, on_disk).values(), key=lambda held: sum(held.values()))


def paper_goal(pair: LlamaPair) -> int:
    """`limit` on paper: the weights, the activations and one layer's gradients, and 5%."""
    large, held = pair.model(pair.large, "meta"), moments(pair)["output head"]
    activations = held["checkpoints"] + max(m["logits or one layer"] for m in moments(pair).values())
    layer = parameter_bytes(large.get_submodule("model.layers.0"))
    return int(1.05 * (held["large weights"] + activations + layer))


def apply_workspace(pair: LlamaPair) -> int:
    """Bytes that writing the weights works in on a GPU, after backward has freed the activations."""
    return max(256 << 20, parameter_bytes(pair.model(pair.large, "meta")) // 8)


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


# measured


def run(variant: str, pair: LlamaPair, device: torch.device, steps: int = 2) -> dict[str, Any]:
    """Peak bytes and seconds of each step, of one variant."""
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    base = 0 if on_gpu else resident()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if variant == VARIANTS[0]:
            large = pair.model(pair.large, device)
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(large.parameters(), lr=1e-4)
        else:
            op = _operator(pair, device, folder if variant == ON_DISK else "")
            large = op.large
            optimizer = lf.GrowthOptimizer(op, lr=1e-3, release_grads=True)
            small = 0 if op.streams else parameter_bytes(op.small)
            result |= {"small weights held": small, "factors": parameter_bytes(op)}
        return result | _measure(large, optimizer, pair, device, steps, base)


def _operator(pair: LlamaPair, device: torch.device, folder: str) -> lf.GrowthOperator:
    """With the small model on the device or, with a folder to put it in, on the disk."""
    small = pair.model(pair.small, device)
    if not folder:
        return ligo(small, pair.model(pair.large, "meta"))
    small.save_pretrained(folder)  # type: ignore[operator]
    del small
    where = "meta" if device.type == "cpu" else device  # the meta device's gets memory on the CPU
    return ligo(pair.model(pair.small, "meta"), pair.model(pair.large, where), source=folder)


def _measure(
    large: nn.Module,
    optimizer: torch.optim.Optimizer,
    pair: LlamaPair,
    device: torch.device,
    steps: int,
    base: int,
) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    large.train()
    large.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    batch, seconds, losses = pair.batch(device), [], []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(steps):
        start = perf_counter()
        loss = large(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))  # waits for the device
        del loss
        seconds.append(perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else status_bytes("VmHWM") - base
    layers = [m for n, m in large.named_modules() if n.endswith("layers.0")]
    return {
        "peak": peak,
        "large weights": parameter_bytes(large),
        "one layer's gradients": parameter_bytes(layers[0]),
        "step seconds": summarize(seconds[1:] or seconds),
        "losses": losses,
    }


def limit(plain: dict[str, Any]) -> int:
    """The goal: plain training's peak less gradients and both moments, plus one layer's gradients and 5%."""
    weights: int = plain["large weights"]
    return int(1.05 * (plain["peak"] - 3 * weights + plain["one layer's gradients"]))


def measure(pair_name: str) -> dict[str, Any]:
    """Every variant in a process of its own."""
    found = {}
    for variant in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.learning_memory", "--pair", pair_name]
        done = subprocess.run(
            [*command, "--variant", variant], cwd=Path(__file__).parents[1], env=os.environ | ALLOCATOR,
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        found[variant] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(pair_name: str) -> dict[str, Any]:
    """The peaks, the goal and what the accounting says."""
    pair = PAIRS[pair_name]
    found = measure(pair_name)
    plain = found[VARIANTS[0]]
    learning, goal = {v: found[v] for v in VARIANTS[1:]}, limit(plain)
    return {
        "pair": {k: v if isinstance(v, (int, dict)) else str(v) for k, v in asdict(pair).items()},
        "variants": found,
        "goal": goal,
        "learning's own: factors, their gradients and moments": 4 * learning[ON_DISK]["factors"],
        "peak / plain": {v: run["peak"] / plain["peak"] for v, run in learning.items()},
        "peak / goal": {v: run["peak"] / goal for v, run in learning.items()},
        "on paper": {v: accounting(pair, v == ON_DISK) for v in learning},
    }


def row(pair: LlamaPair, device: torch.device, steps: int = 20) -> dict[str, Any]:
    """The row of `benchmarks.gpu`: learning alone, beside what it takes on paper."""
    part = run("learning", pair, device, steps)
    paper = sum(accounting(pair).values())
    return {"status": "measured", "on paper": paper, "steps": steps, "tokens": pair.tokens} | part


PAIRS = {"cpu": ON_A_CPU, "tiny": TINY, "7b": SEVEN_B}


def main() -> None:
    """Measure, or run one variant."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_memory", description=__doc__)
    parser.add_argument("--pair", choices=sorted(PAIRS), default="cpu")
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--row", action="store_true", help="20 steps of learning, for benchmarks.gpu")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not options.rehearse
    device = torch.device("cuda" if on_gpu else "cpu")
    if options.row:
        options.out.write_text(json.dumps(row(PAIRS[options.pair], device)) + "\n")
        return
    if options.variant:
        run(options.variant, TINY, device)  # loads the code
        print(json.dumps(run(options.variant, PAIRS[options.pair], device)))
        return
    result = provenance(sys.argv[1:], "benchmarks.learning_memory")
    result |= {"hardware": hardware(), "versions": versions(), **report(options.pair)}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if "/" in k or k == "goal"}, indent=1))


if __name__ == "__main__":
    main()
