"""What the config says layer by layer goes with the layer's weights, in memory as in files."""

from __future__ import annotations

import pytest
import torch
from models import build, exact_rms_norm, make_batch

import ligo_fast as lf

FULL, SLIDING = "full_attention", "sliding_attention"


def mixed(name: str = "qwen2-lm", types: tuple[str, ...] = (FULL, FULL, SLIDING, SLIDING)):
    """A model whose types matter: the window is shorter than the batch."""
    return build(
        name, dtype=torch.float64, num_hidden_layers=len(types), layer_types=[*types],
        use_sliding_window=True, sliding_window=3,
    )  # fmt: skip


def certify(small, large):
    with exact_rms_norm():
        return lf.certify(small, large, make_batch("qwen2-lm"))


GROWTHS = {
    "zero": ({"depth": 8, "method": "zero"}, [FULL] * 4 + [SLIDING] * 4),
    "zero, odd": ({"depth": 6, "method": "zero"}, [FULL] * 3 + [SLIDING] * 3),
    "stack": ({"depth": 8, "method": "stack"}, [FULL, FULL, SLIDING, SLIDING] * 2),
    "by hand": ({"depth": 4, "method": "copy+3,2,1,0"}, [SLIDING, SLIDING, FULL, FULL]),
    "width": ({"width": 32, "method": "tile"}, [FULL, FULL, SLIDING, SLIDING]),
}


@pytest.mark.parametrize("name", ["qwen2-lm", "qwen3-lm"])
@pytest.mark.parametrize("growth, types", GROWTHS.values(), ids=GROWTHS)
def test_a_grown_layer_has_the_type_of_its_source(name, growth, types):
    small = mixed(name)
    large = lf.grow(
        small, **({**growth, "width": 24} if name == "qwen3-lm" and "width" in growth else growth)
    )
    assert large.config.layer_types == types
    layers = large.model.layers  # what the attention itself goes by
    assert [layer.self_attn.sliding_window for layer in layers] == [
        3 if t == SLIDING else None for t in types
    ]
    certificate = certify(small, large)
    kept = growth["method"] in ("zero", "tile")
    assert certificate.exact is kept, certificate
    assert all(r.holds for r in certificate.rules) is kept
    assert next(r for r in certificate.rules if r.name == "layer types").holds


def test_an_order_that_no_default_knows_stays_when_only_the_width_grows():
    small = mixed(types=(SLIDING, FULL))
    assert lf.grow(small, width=32, method="tile").config.layer_types == [SLIDING, FULL]


def test_one_type_of_all_layers_stays_theirs():
    """A constructor makes layers behind `max_window_layers` sliding ones."""
    small = build(
        "qwen2-lm", layer_types=[FULL, FULL], use_sliding_window=True, max_window_layers=2, sliding_window=3
    )
    large = lf.grow(small, depth=4, method="zero")
    assert large.config.layer_types == [FULL] * 4
    assert lf.certify(small, large, make_batch("qwen2-lm")).exact


@pytest.mark.parametrize("method", ["ligo", "identity"])
def test_mixed_or_drawn_layers_of_several_types_are_refused(method):
    with pytest.raises(lf.GrowthError, match=r"layer_types: .*full_attention, sliding_attention.* 8 layers"):
        lf.grow(mixed(), depth=8, method=method)


def test_types_may_be_given():
    types = [FULL, FULL, SLIDING, SLIDING] * 2
    with pytest.warns(UserWarning, match="initial operator"):
        large = lf.grow(mixed(), depth=8, method="ligo", layer_types=types)
    assert large.config.layer_types == types


def test_a_target_of_other_types_breaks_a_rule():
    small = mixed()
    target = mixed(types=(FULL, FULL, SLIDING, SLIDING, SLIDING, SLIDING, SLIDING, SLIDING))
    certificate = certify(small, lf.grow(small, target=target, method="zero"))
    assert not certificate.exact and certificate.max_diff > 0.1
    (rule,) = (r for r in certificate.rules if not r.holds)
    assert rule.name == "layer types"
    assert rule.why == "layer 2 has sliding_attention, the source's layer 1 it is made of full_attention"


def test_layers_that_add_zero_may_be_of_any_type():
    target = mixed(types=(FULL, SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING, FULL))
    small = mixed()
    certificate = certify(small, lf.grow(small, target=target, method="zero"))
    assert certificate.exact and all(r.holds for r in certificate.rules)


@pytest.mark.parametrize(
    "flags, growth, exact",
    [
        ({"scale_attn_by_inverse_layer_idx": True}, {"depth": 4, "method": "tile+zero"}, False),
        ({"scale_attn_by_inverse_layer_idx": True}, {"depth": 4, "method": "tile+identity"}, True),
        ({"scale_attn_by_inverse_layer_idx": True}, {"width": 16, "method": "tile"}, True),
        ({"scale_attn_weights": False}, {"width": 16, "n_head": 2, "method": "tile"}, False),
        ({"scale_attn_weights": False}, {"width": 16, "method": "tile"}, True),
        ({}, {"width": 16, "n_head": 2, "method": "tile"}, True),
    ],
)
def test_what_gpt2_divides_scores_by(flags, growth, exact):
    small = build("gpt2-lm", dtype=torch.float64, **flags)
    certificate = lf.certify(small, lf.grow(small, **growth), make_batch("gpt2-lm"))
    assert (certificate.max_diff < 1e-10) is exact
    assert certificate.exact is exact
    assert {r.name for r in certificate.rules if not r.holds} == (set() if exact else {"attention scores"})
