"""Random numbers of constructors: the same as ever, from generators that other threads do not share."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from models import TINY, build, same, snapshot
from torch import nn

import ligo_fast as lf
from ligo_fast.models.drawing import drawn


def by_the_global_generator(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


@pytest.mark.parametrize("name", TINY)
def test_the_numbers_are_those_of_a_seeded_constructor(name):
    tiny = TINY[name]
    model = drawn(lambda: tiny.cls(tiny.make_config()), 3)
    want = by_the_global_generator(lambda: tiny.cls(tiny.make_config()), 3)
    assert same(snapshot(want), model)


WAYS = {
    "in place": lambda: torch.empty(7).normal_().uniform_().exponential_(),
    "made": lambda: torch.stack([torch.randn(7), torch.rand(7), torch.normal(1.0, 2.0, (7,))]),
    "integers": lambda: torch.cat([torch.randint(9, (7,)), torch.randint(3, 9, (7,)), torch.randperm(7)]),
    "a mask": lambda: torch.bernoulli(torch.full((50,), 0.5)),
    "no generator": lambda: torch.native_dropout(torch.ones(50), 0.5, True)[0],
    "initialised": lambda: nn.init.trunc_normal_(nn.init.orthogonal_(torch.empty(5, 5)).clone()),
    "on meta": lambda: torch.zeros_like(torch.randn(5, device="meta"), device="cpu"),
    "its own": lambda: torch.randn(5, generator=torch.Generator().manual_seed(8)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_draw(way):
    before = torch.get_rng_state()
    got = drawn(WAYS[way], 5)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(got, by_the_global_generator(WAYS[way], 5))


def test_the_global_generator_is_not_touched_meanwhile():
    state, seen = torch.get_rng_state(), []

    def make():
        layer = nn.Linear(4, 4)
        seen.append(torch.get_rng_state())
        return layer

    drawn(make, 1)
    assert all(torch.equal(s, state) for s in seen)


class Pausing(TINY["gpt2-lm"].cls):
    """A model whose constructor waits, so that another thread draws meanwhile."""

    pause = staticmethod(lambda: None)

    def __init__(self, config):
        super().__init__(config)
        self.pause()
        with torch.no_grad():
            self.transformer.wpe.weight.copy_(self.more(self.transformer.wpe.weight.shape))

    more = staticmethod(torch.randn)


def without_generator(shape):
    return torch.native_dropout(torch.ones(shape), 0.5, True)[0]


def grown_in_threads(smalls):
    """What `lf.grow` makes of each model, all at the same time."""
    found = [None] * len(smalls)

    def work(n):
        found[n] = lf.grow(smalls[n], width=16, depth=3, seed=4)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(smalls))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return found


@pytest.mark.parametrize("kind", ["with generators", "without"])
def test_threads_that_grow_at_the_same_time_draw_what_one_would(kind, monkeypatch):
    smalls = []
    for seed in range(2):
        small = Pausing(build("gpt2-lm").config)
        small.load_state_dict(build("gpt2-lm", seed=seed).state_dict())
        smalls.append(small)
    if kind == "without":
        monkeypatch.setattr(Pausing, "more", staticmethod(without_generator))
        pause = lambda: time.sleep(0.1)  # noqa: E731  (one thread at a time: they cannot wait for each other)
    else:
        pause = threading.Barrier(2, timeout=20).wait
    want = [snapshot(lf.grow(small, width=16, depth=3, seed=4)) for small in smalls]
    monkeypatch.setattr(Pausing, "pause", staticmethod(pause))
    before = torch.get_rng_state()
    for state, large in zip(want, grown_in_threads(smalls), strict=True):
        assert same(state, large)
    assert torch.equal(before, torch.get_rng_state())
