"""Normal numbers: the published test vectors, the distribution, and the same bits everywhere."""

from __future__ import annotations

import models
import pytest
import torch
from test_select import compiled

import ligo_fast as lf
from ligo_fast.native import cpu, noise

CPU = torch.device("cpu")


def test_philox_gives_the_published_words() -> None:
    """The vectors of its authors' library: counter and key of zeros, of ones, of digits of pi."""
    vectors = [
        (0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, 2**64 - 1, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (0x85A308D3243F6A88, 0x0370734413198A2E, 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]
    for counter, stream, seed, words in vectors:
        at = torch.tensor([counter - (counter >> 63 << 64)])
        found = noise.philox(at, stream, seed)[0].tolist()
        assert " ".join(f"{word:08x}" for word in found) == words


def test_every_normal_is_the_inverse_distribution_function() -> None:
    words = torch.arange(0, 1 << 32, 1 << 9)  # all that are told apart
    exact = torch.special.ndtri((words >> 9).double() * 2**-23 + 2**-24)
    found = noise.from_words(words)
    assert bool(((found - exact).abs() <= 4 * torch.finfo(torch.float32).eps * exact.abs()).all())
    assert torch.equal(found, -found.flip(0)) and bool((found.diff() >= 0).float().mean() > 0.99)


@compiled
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 4096, 100003])
def test_compiled_and_torch_agree_to_the_bit(
    count: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compiled_ = noise.normal((count,), 2**64 - 7, 2**33 + 1, CPU)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(cpu, "extension", None)
    assert torch.equal(compiled_, noise.normal((count,), 2**64 - 7, 2**33 + 1, CPU))


def test_seeds_and_streams_are_different_numbers() -> None:
    first, *others = (noise.normal((5, 7), *key, CPU) for key in ((1, 0), (2, 0), (1, 1)))
    assert first.shape == (5, 7) and torch.equal(first, noise.normal((5, 7), 1, 0, CPU))
    assert all(not bool((first == other).any()) for other in others)
    with pytest.raises(ValueError, match="64-bit"):
        noise.normal((1,), -1, 0, CPU)


@compiled
def test_noise_of_a_growth_does_not_depend_on_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The selection is compiled or torch's, the noise too: the same model to the bit."""

    def grown() -> tuple[lf.GrowthOperator, dict[str, torch.Tensor]]:
        small = models.build("gpt2-lm")
        large = models.build("gpt2-lm", 1, n_embd=16, n_head=4, n_layer=5, n_inner=24)
        op = lf.GrowthOperator(small, large, "net2net+stack", noise=0.1, seed=3)
        op.apply_()
        return op, {n: p.detach().clone() for n, p in large.named_parameters()}

    op, ours = grown()
    selection = op._execution.compiled.selection
    assert selection is not None and len(selection.covered) == len(op.pieces)
    assert all(torch.equal(p, ours[n]) for n, p in op().items())
    monkeypatch.setenv("LIGO_FAST_BACKEND", "torch")
    monkeypatch.setattr(cpu, "extension", None)
    _, theirs = grown()
    assert all(torch.equal(ours[n], p) for n, p in theirs.items())
