"""Every growth method against a plain construction from its paper's definition."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
import torch
from models import build, exact_rms_norm, make_batch, output, same, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

import ligo_fast as lf
from ligo_fast import GrowthError, GrowthOperator, methods
from ligo_fast.axes import Axis, AxisMaps, Context, Family, product
from ligo_fast.maps import Dense, Map, PrefixDiagonal, Selection

F64 = torch.float64
# for every parameter of a Llama layer, the axes of its dimensions
LLAMA = {
    "self_attn.q_proj.weight": ("q", "embed"),
    "self_attn.k_proj.weight": ("k", "embed"),
    "self_attn.v_proj.weight": ("v", "embed"),
    "self_attn.o_proj.weight": ("embed", "context"),
    "mlp.gate_proj.weight": ("ffn", "embed"),
    "mlp.up_proj.weight": ("ffn", "embed"),
    "mlp.down_proj.weight": ("embed", "ffn"),
    "input_layernorm.weight": ("embed",),
    "post_attention_layernorm.weight": ("embed",),
}
WRITERS = ("o_proj.weight", "down_proj.weight")


def llama(**overrides: int) -> nn.Module:
    return build("llama-lm", dtype=F64, **overrides)


def wider_llama(factor: float = 2, seed: int = 5, **overrides: int) -> nn.Module:
    """A target with its own random weights; head_dim is 4 and two queries share a key, as in the source."""
    heads = int(4 * factor)
    sizes = {
        "hidden_size": 4 * heads, "num_attention_heads": heads, "num_key_value_heads": heads // 2,
        "intermediate_size": int(12 * factor),
    }  # fmt: skip
    return build("llama-lm", seed=seed, dtype=F64, **{**sizes, **overrides})


def grown(small: nn.Module, large: nn.Module, method: str, **options: object) -> dict[str, Tensor]:
    return snapshot(lf.grow(small, target=large, method=method, **options))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters()}


def suffix(name: str) -> str:
    """A parameter's name inside its layer, or its name."""
    return name.split(".", 3)[3] if ".layers." in name else name


def expect(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name, w in want.items():
        torch.testing.assert_close(got[name], w, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def tiled(w: Tensor, n: int) -> Tensor:
    return w.repeat(*[n] * w.dim())


@pytest.mark.parametrize("n", [2, 3])
def test_tile_is_hypercloning(n: int) -> None:
    small = llama()
    want = {}
    for name, w in weights(small).items():
        if name.endswith("embed_tokens.weight"):
            want[name] = w.repeat(1, n)
        elif name == "lm_head.weight":
            want[name] = w.repeat(1, n) / n
        else:
            want[name] = tiled(w, n) / (n if w.dim() == 2 else 1)
    expect(grown(small, wider_llama(n), "tile"), want)


def test_tile_of_fused_projections_and_a_tied_head() -> None:
    n = 3
    small = build("gpt2-lm", dtype=F64)
    large = build("gpt2-lm", seed=1, dtype=F64, n_embd=24, n_head=6, n_inner=36)
    want = {}
    for name, w in weights(small).items():
        parts = w.chunk(3, dim=-1) if "c_attn" in name else [w]
        if name.split(".")[1] in ("wte", "wpe"):
            want[name] = w.repeat(1, n)
        elif "ln_f" in name:  # the embedding, read as a head, adds up its n copies
            want[name] = w.repeat(n) / n
        else:
            want[name] = torch.cat([tiled(p, n) / (n if p.dim() == 2 else 1) for p in parts], dim=-1)
    expect(grown(small, large, "tile"), want)


def test_tile_needs_a_whole_multiple() -> None:
    large = wider_llama(1.5)
    before = snapshot(large)
    with pytest.raises(GrowthError, match=r"axis \w+: tile needs a whole multiple, \d+ is 1\.5 times"):
        lf.grow(llama(), target=large, method="tile")
    assert same(before, large)


def test_copy_repeats_without_rescaling() -> None:
    small = llama()
    want = {}
    for name, w in weights(small).items():
        fixed = name.endswith("embed_tokens.weight") or name == "lm_head.weight"
        want[name] = w.repeat(1, 2)[:, :24] if fixed else tiled(w, 2)
    # heads go by key/value head of 2 queries of 4 units, so new rows follow the old in each product
    rows = {"embed": 24, "ffn": 18, "q": 24, "context": 24, "k": 12, "v": 12}
    for name, w in want.items():
        if suffix(name) in LLAMA:
            sizes = [rows[axis] for axis in LLAMA[suffix(name)]]
            want[name] = w[: sizes[0]] if w.dim() == 1 else w[: sizes[0], : sizes[1]]
        elif w.dim() == 1:
            want[name] = w[:24]
    expect(grown(small, wider_llama(1.5), "copy"), want)


def test_net2net_divides_by_counts() -> None:
    small, large = llama(), wider_llama(1.5)
    op = GrowthOperator(small, large, method="net2net", seed=3)
    unit = {name: u.argmax(1) for name, u in op.width_maps().items()}  # the old unit of each unit
    for name, index in unit.items():
        old = int(index.max()) + 1
        assert torch.equal(index[:old], torch.arange(old)), name
    kv = unit["v"][::4] // 4
    for name, units in (("q", 8), ("k", 4), ("v", 4), ("context", 8)):  # of each key/value head, all together
        assert torch.equal(unit[name], (kv[:, None] * units + torch.arange(units)).flatten()), name

    def share(index: Tensor) -> Tensor:
        return 1 / torch.bincount(index)[index].double()

    want = {}
    for name, w in weights(small).items():
        axes = LLAMA.get(suffix(name))
        if name.endswith("embed_tokens.weight"):
            want[name] = w[:, unit["embed"]]
        elif name == "lm_head.weight":
            want[name] = w[:, unit["embed"]] * share(unit["embed"])
        elif axes is None or len(axes) == 1:
            want[name] = w[unit["embed"]]
        else:
            rows, cols = (unit[a] for a in axes)
            want[name] = w[rows][:, cols] * share(cols)
    expect(snapshot(op.apply_()), want)


def test_pad_with_rms_norm() -> None:
    small, large = llama(), wider_llama(1.5)
    got = grown(small, large, "pad")
    zero_rows = {"embed", "ffn", "v"}
    for name, w in weights(small).items():
        new, axes = got[name], LLAMA.get(suffix(name))
        if name.endswith("embed_tokens.weight"):
            assert torch.equal(new[:, :16], w)
            assert not new[:, 16:].any()
        elif axes is None or len(axes) == 1:
            old = new[..., :16] if w.dim() == 2 else new[:16] / math.sqrt(16 / 24)
            torch.testing.assert_close(old, w)
        else:
            assert torch.equal(new[: w.shape[0], : w.shape[1]], w)
            assert bool(new[: w.shape[0], w.shape[1] :].all()), f"{name}: free weights are dead"
            if axes[0] in zero_rows:
                assert not new[w.shape[0] :].any(), name


def test_pad_with_layer_norm_tiles_and_fills_with_the_mean() -> None:
    small = build("gpt2-lm", dtype=F64)
    large = build("gpt2-lm", seed=1, dtype=F64, n_embd=20, n_head=5, n_inner=20)
    got, old = grown(small, large, "pad"), weights(small)
    for name in ("transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.mlp.c_proj.weight"):
        w = old[name]
        want = torch.cat([w, w, w.mean(1, keepdim=True).expand(-1, 4)], dim=1)
        torch.testing.assert_close(got[name][: len(w)], want)
    gain, shift = (old[f"transformer.h.1.ln_1.{n}"] for n in ("weight", "bias"))
    torch.testing.assert_close(got["transformer.h.1.ln_1.weight"][:16], gain.repeat(2) * math.sqrt(16 / 20))
    torch.testing.assert_close(got["transformer.h.1.ln_1.bias"], F.pad(shift.repeat(2), (0, 4)))
    gain, shift = (old[f"transformer.ln_f.{n}"] for n in ("weight", "bias"))
    torch.testing.assert_close(got["transformer.ln_f.weight"][:16], gain.repeat(2) * math.sqrt(16 / 20) / 2)
    torch.testing.assert_close(got["transformer.ln_f.bias"], F.pad(shift.repeat(2) / 2, (0, 4)))


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 4), (3, 7)], ids=str)
def test_aki_takes_new_rows_from_the_layer_above(before: int, after: int) -> None:
    small = llama(num_hidden_layers=before)
    fpi = grown(small, wider_llama(1.5, num_hidden_layers=before), "net2net", seed=2)
    got = grown(small, wider_llama(1.5, num_hidden_layers=after), "aki+stack", seed=2)
    old = {n: w.shape[0] for n, w in weights(small).items()}
    for name, w in got.items():
        if ".layers." not in name:
            torch.testing.assert_close(w, fpi[name])
            continue
        layer = int(name.split(".")[2]) % before
        above = min(layer + 1, before - 1)
        own, next_up = (f"model.layers.{n}.{suffix(name)}" for n in (layer, above))
        kept = old[own]
        torch.testing.assert_close(w[:kept], fpi[own][:kept])
        torch.testing.assert_close(w[kept:], fpi[next_up][kept:])
        assert above == layer or not torch.equal(w[kept:], fpi[own][kept:])


@pytest.mark.parametrize("depth", ["ligo", "interpolate", "zero", "1,0,1,1"])
@pytest.mark.parametrize("name", ["bert-mlm", "llama-lm"])
def test_aki_widens_before_any_depth_method_takes_or_mixes_layers(name: str, depth: str) -> None:
    small = build(name, dtype=F64)
    width = 2 * small.config.hidden_size
    wide = weights(lf.grow(small, width=width, method="aki", seed=2))
    large = lf.grow(small, width=width, depth=4, method="copy")
    op = GrowthOperator(small, large, method=f"aki+{depth}", seed=2)
    got, d, layer = weights(op.apply_()), op.depth_maps(), re.compile(r"\b(layers?)\.(\d+)\.")
    assert all(torch.equal(t, got[n]) for n, t in op().items())
    for n, w in got.items():
        if (found := layer.search(n)) is None:
            torch.testing.assert_close(w, wide[n])
            continue
        row = next(m for family, m in d.items() if family.endswith(f".*.{n[found.end() :]}"))[int(found[2])]
        layers = [wide[n.replace(found[0], f"{found[1]}.{j}.")] for j in range(len(row))]
        torch.testing.assert_close(w, sum(float(x) * t for x, t in zip(row, layers, strict=True)))


def test_aki_of_fused_projections() -> None:
    small = build("gpt2-lm", dtype=F64)
    sizes = {"n_embd": 16, "n_head": 4, "n_inner": 20}
    fpi, got = (
        grown(small, build("gpt2-lm", seed=1, dtype=F64, **sizes), method) for method in ("net2net", "aki")
    )
    name = "transformer.h.{}.attn.c_attn.weight"
    found = (got[name.format(0)], fpi[name.format(0)], fpi[name.format(1)])
    ours, own, above = (w.view(16, 3, 16) for w in found)
    torch.testing.assert_close(ours[:, :, :8], own[:, :, :8])
    torch.testing.assert_close(ours[:, :, 8:], above[:, :, 8:])


def test_aki_needs_the_old_units_in_front() -> None:
    large = wider_llama(2, num_key_value_heads=2)
    with pytest.raises(GrowthError, match="aki needs the old units of q in front"):
        lf.grow(llama(), target=large, method="aki")


def test_random_keeps_the_old_corner_and_the_target_elsewhere() -> None:
    small, large = llama(), wider_llama(1.5)
    fresh = snapshot(large)
    got = grown(small, large, "random")
    for name, w in weights(small).items():
        want = fresh[name].clone()
        want[tuple(slice(n) for n in w.shape)] = w
        assert torch.equal(got[name], want), name


def test_random_of_fused_projections() -> None:
    small = build("gpt2-lm", dtype=F64)
    large = build("gpt2-lm", seed=1, dtype=F64, n_embd=16, n_head=4, n_inner=20)
    name = "transformer.h.1.attn.c_attn.weight"
    want = large.get_parameter(name).detach().clone().view(16, 3, 16)
    want[:8, :, :8] = small.get_parameter(name).detach().view(8, 3, 8)
    assert torch.equal(grown(small, large, "random")[name].view(16, 3, 16), want)


def test_scratch_takes_nothing() -> None:
    large = wider_llama(1.5, num_hidden_layers=5)
    before = snapshot(large)
    lf.grow(llama(), target=large, method="scratch")
    assert same(before, large)


# for each layer of the target: the source layer (None: as the target has it) and whether it adds zero
DEPTHS: dict[str, tuple[str, int, list[tuple[int | None, bool]]]] = {
    "stack 2 to 4": ("stack", 2, [(0, False), (1, False), (0, False), (1, False)]),
    "stack 3 to 5": ("stack", 3, [(source, False) for source in (0, 1, 2, 0, 1)]),
    "interpolate 2 to 4": ("interpolate", 2, [(source, False) for source in (0, 0, 1, 1)]),
    "interpolate 3 to 9": ("interpolate", 3, [(source, False) for source in (0, 0, 0, 1, 1, 1, 2, 2, 2)]),
    "interpolate 2 to 5": ("interpolate", 2, [(source, False) for source in (0, 0, 0, 1, 1)]),
    "identity 2 to 5": ("identity", 2, [(0, False), (1, False), *[(None, True)] * 3]),
    "random 2 to 4": ("random", 2, [(0, False), (1, False), *[(None, False)] * 2]),
    "scratch 2 to 3": ("scratch", 2, [(None, False)] * 3),
}


def check_layers(method: str, before: int, plan: list[tuple[int | None, bool]]) -> None:
    small, large = llama(num_hidden_layers=before), wider_llama(1, num_hidden_layers=len(plan))
    source, fresh = weights(small), snapshot(large)
    lf.grow(small, target=large, method=f"copy+{method}")
    for name, w in weights(large).items():
        if ".layers." not in name:
            assert torch.equal(w, source[name]), name
            continue
        layer, zero = plan[int(name.split(".")[2])]
        want = fresh[name] if layer is None else source[f"model.layers.{layer}.{suffix(name)}"]
        writes = name.endswith(WRITERS)
        assert torch.equal(w, torch.zeros_like(want) if zero and writes else want), name


@pytest.mark.parametrize(("method", "before", "plan"), DEPTHS.values(), ids=DEPTHS)
def test_layers_come_from(method: str, before: int, plan: list[tuple[int | None, bool]]) -> None:
    check_layers(method, before, plan)


def llama_pro(layers: int, new: int) -> list[tuple[int, bool]]:
    """Every layers/new-th block is followed by a copy that adds nothing (the paper's Fig. 2)."""
    plan = []
    for layer in range(layers):
        plan.append((layer, False))
        if (layer + 1) % (layers // new) == 0:
            plan.append((layer, True))
    return plan


@pytest.mark.parametrize(("layers", "new"), [(2, 2), (4, 2), (6, 2), (3, 1)], ids=str)
def test_zero_is_llama_pro(layers: int, new: int) -> None:
    check_layers("zero", layers, llama_pro(layers, new))


def test_zero_layers_have_zero_biases_too() -> None:
    small = build("gpt2-lm", dtype=F64)
    got = grown(small, build("gpt2-lm", seed=1, dtype=F64, n_layer=4), "zero")
    for layer in (1, 3):
        for name in ("attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"):
            assert not got[f"transformer.h.{layer}.{name}"].any()
            assert got[f"transformer.h.{layer - 1}.{name}"].any()


@pytest.mark.parametrize("method", methods.DEPTH)
def test_layers_stay_where_depth_does_not_grow(method: str) -> None:
    small, large = llama(), wider_llama(1)
    got = grown(small, large, f"copy+{method}")
    expect(got, weights(small))


def axis(small: int, large: int, norm: str | None = None) -> Axis:
    return Axis("embed" if norm else "ffn", small, large, norm=norm)


def context(seed: int = 0, layers: tuple[int, int] = (2, 4)) -> Context:
    return Context(seed, layers)


FIXED = ["aki", "copy", "net2net", "pad", "random", "scratch", "tile"]
EXACT = ["aki", "net2net", "pad", "tile"]
NORMS = [None, "rms", "layer"]


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("name", FIXED)
def test_every_map_has_the_axis_sizes_and_is_fixed(name: str, norm: str | None) -> None:
    maps = methods.WIDTH[name].fn(axis(6, 18, norm), context())
    for role, m in maps.named():
        assert m.shape == (18, 6), role
        assert not any(t.requires_grad for t in m.factors().values()), role


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("name", FIXED)
def test_old_units_stay_in_front(name: str, norm: str | None) -> None:
    maps = methods.WIDTH[name].fn(axis(6, 18, norm), context())
    torch.testing.assert_close(maps.out.dense()[:6], torch.eye(6, dtype=F64))


@pytest.mark.parametrize("sizes", [(6, 18), (1, 7), (5, 10)], ids=str)
@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_consumers_undo_producers(name: str, norm: str | None, sizes: tuple[int, int]) -> None:
    """V^T S = I, for what arrives at a consumer: U, or what the norm makes of it."""
    maps = methods.WIDTH[name].fn(axis(*sizes, norm), context())
    arrives, into = maps.role("shift").dense(), maps.role("in").dense()
    torch.testing.assert_close(into.t() @ arrives, torch.eye(sizes[0], dtype=F64))


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [*(("pad", s) for s in ((6, 9), (6, 18), (6, 16), (1, 7))), ("tile", (6, 18)), ("tile", (1, 7))],
    ids=str,
)
def test_the_norm_of_the_grown_stream_is_the_grown_norm(name: str, norm: str, sizes: tuple[int, int]) -> None:
    maps = methods.WIDTH[name].fn(axis(*sizes, norm), context())
    x, gain, shift = (torch.randn(3, sizes[0], dtype=F64) for _ in range(3))
    eps = 0.1
    u, g, s = (maps.role(role).dense().t() for role in ("out", "gain", "shift"))

    def normed(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True) if norm == "layer" else x
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * gain + shift

    small = normed(x, gain, shift, eps)
    large = normed(x @ u, gain @ g, shift @ s, eps * maps.eps_scale)
    torch.testing.assert_close(large, small @ s)


@pytest.mark.parametrize("name", ["aki", "net2net"])
def test_net2net_shares_by_how_often_a_unit_occurs(name: str) -> None:
    maps = methods.WIDTH[name].fn(axis(5, 23), context())
    u, v = maps.out.dense(), maps.role("in").dense()
    assert torch.equal(u.sum(1), torch.ones(23, dtype=F64))
    assert torch.equal(u, (u != 0).double())
    torch.testing.assert_close(v, u / u.sum(0))
    assert len(set(u[5:].argmax(1).tolist())) > 1


def test_pad_reads_every_old_unit_before_one_twice() -> None:
    into = methods.WIDTH["pad"].fn(axis(5, 14), context()).role("in").dense()
    read = into.argmax(1)[5:]
    assert sorted(read[:5].tolist()) == list(range(5))
    assert len(set(read[5:].tolist())) == 4


@pytest.mark.parametrize("name", EXACT)
def test_a_wider_head_keeps_attention_scores(name: str) -> None:
    """q and k are contracted over head_dim and divided by its root."""
    head_dim = Axis("head_dim", 4, 12, tag="score")
    whole = Axis("q", 8, 24, factors=(Axis("head", 2, 2), head_dim))
    parts = [AxisMaps(lf.maps.Identity(2)), methods.WIDTH[name].fn(head_dim, context())]
    u = product(whole, parts).out.dense()
    torch.testing.assert_close(u.t() @ u / math.sqrt(12), torch.eye(8, dtype=F64) / math.sqrt(4))


@pytest.mark.parametrize("init", ["random", "selection", "tile"])
def test_ligo_starts_new_rows(init: str) -> None:
    maps = methods.WIDTH["ligo"].fn(axis(6, 20), context(), width_init=init)
    assert isinstance(maps.out, PrefixDiagonal)
    assert maps.out.diag is None
    u, new = maps.out.dense(), maps.out.C.detach()
    assert torch.equal(u[:6], torch.eye(6, dtype=F64))
    torch.testing.assert_close(new.sum(1), torch.ones(14, dtype=F64))
    assert bool((new >= 0).all())
    if init == "random":
        assert bool((new > 0).all())
    else:
        assert torch.equal(new.max(1).values, torch.ones(14, dtype=F64))
    if init == "tile":
        assert torch.equal(new.argmax(1), torch.arange(6, 20) % 6)


def test_ligo_width_noise_is_scaled_by_the_axis() -> None:
    plain, noisy = (
        methods.WIDTH["ligo"].fn(axis(64, 256), context(), width_init="selection", width_noise=noise).out.C
        for noise in (0.0, 0.5)
    )
    std = float((noisy - plain).detach().std())
    assert std == pytest.approx(0.5 / 8, rel=0.05)


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("form", ["prefix", "dense"])
@pytest.mark.parametrize("init", ["random", "selection", "tile"])
def test_ligo_with_free_consumers_starts_exact(init: str, form: str, norm: str | None) -> None:
    maps = methods.WIDTH["ligo"].fn(axis(6, 20, norm), context(), width_init=init, tie=False, form=form)
    u, v = maps.out.dense(), maps.role("in").dense()
    torch.testing.assert_close(v.t() @ u, torch.eye(6, dtype=F64))
    assert (maps.final_gain is None) == (norm is None)
    if norm:
        torch.testing.assert_close(maps.role("gain+", tied=True).dense(), v)


@pytest.mark.parametrize("init", ["stack", "interpolate"])
@pytest.mark.parametrize("noise", [0.0, 0.03, 0.5])
def test_ligo_blends_start_near_a_selection(init: str, noise: float) -> None:
    family = Family("h.*.weight", 3, 7, writes=False)
    d = methods.DEPTH["ligo"].fn(family, context(), depth_init=init, depth_noise=noise)
    assert isinstance(d, Dense)
    assert d.M.requires_grad
    source = [0, 1, 2, 0, 1, 2, 0] if init == "stack" else [0, 0, 0, 1, 1, 2, 2]
    start = torch.eye(3, dtype=F64)[source]
    rows = d.M.detach()
    torch.testing.assert_close(rows.sum(1), torch.ones(7, dtype=F64))
    # of (start + u) / sum with u in [0, noise]: each other entry is at most noise / (1 + noise) of its row
    others = rows[start == 0]
    assert float(others.max()) <= noise / (1 + noise)
    assert float(rows[start == 1].min()) >= 1 / (1 + 2 * noise) - 1e-12
    if noise:
        assert bool((others > 0).all())
        other = methods.DEPTH["ligo"].fn(Family("b", 3, 7, False), context(), depth_noise=noise)
        assert not torch.equal(rows, other.M)


def learned(method: str = "ligo", model: str = "gpt2-lm", **options: object) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an operator's factors; the width grows twofold and two layers become three."""
    small = build(model)
    if model == "gpt2-lm":
        large = build(model, n_embd=16, n_head=4, n_inner=24, n_layer=3)
    else:
        large = build(model, hidden_size=32, num_attention_heads=8, num_key_value_heads=4,
                      intermediate_size=24, num_hidden_layers=3)  # fmt: skip
    op = GrowthOperator(small, large, method=method, **options)
    return {n: tuple(p.shape) for n, p in op.named_parameters()}


def of(shapes: dict[str, tuple[int, ...]], kind: str) -> dict[str, tuple[int, ...]]:
    return {n: s for n, s in shapes.items() if n.startswith(kind)}


def test_ligo_learns_one_map_an_axis_and_one_blend_a_family() -> None:
    shapes = learned(tie=True)
    width = {"embed": (8, 8), "q": (8, 8), "k": (8, 8), "v": (8, 8), "ffn": (12, 12)}
    assert of(shapes, "width/") == {f"width/{axis}/out/C": size for axis, size in width.items()}
    blends = of(shapes, "depth/")
    assert set(blends.values()) == {(3, 2)}
    assert len(blends) == 16  # 12 weights and biases a layer, of which c_attn's two are three each


def test_ligo_mixes_whole_heads_under_rotary_positions() -> None:
    shapes = of(learned(model="llama-lm", tie=True), "width/")
    assert sorted(shapes.values()) == [(2, 2), (2, 2), (2, 2), (12, 12), (16, 16)]


def test_ligo_with_free_consumers_learns_only_maps_in_use() -> None:
    shapes = of(learned(tie=False), "width/")
    roles: dict[str, set[str]] = {}
    for name in shapes:
        _, axis_name, role, factor = name.split("/")
        roles.setdefault(axis_name, set()).add(f"{role}.{factor}")
    consumed = {"out.C", "into.C", "into.diag"}
    assert roles == {
        "embed": {*consumed, "final_gain.C", "final_gain.diag"},
        "q": {"out.C"},
        "k": {"out.C"},
        "v": consumed,
        "ffn": consumed,
    }


def test_ligo_with_dense_maps_learns_every_entry() -> None:
    shapes = of(learned(form="dense"), "width/")
    assert set(shapes.values()) == {(16, 8), (24, 12)}


@pytest.mark.parametrize(("per_layer", "layers"), [("source", 2), ("target", 3)])
def test_ligo_per_layer_shares_only_the_residual_stream(per_layer: str, layers: int) -> None:
    shapes = of(learned(per_layer=per_layer, tie=True), "width/")
    assert shapes.pop("width/embed/out/C") == (8, 8)
    assert set(shapes) == {f"width/{a}/{n}/out/C" for a in ("q", "k", "v", "ffn") for n in range(layers)}


def test_ligo_maps_of_layers_start_apart() -> None:
    small, large = build("gpt2-lm"), build("gpt2-lm", n_embd=16, n_head=4, n_inner=24)
    op = GrowthOperator(small, large, per_layer="target")
    first, second = (op.get_parameter(f"width/q/{n}/out/C") for n in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("per_layer", ["none", "source", "target"])
@pytest.mark.parametrize("depth", ["stack", "zero", "identity", "random"])
def test_learned_width_on_layers_that_stay(depth: str, per_layer: str) -> None:
    """A depth method that leaves layers as the target has them goes with any learned width."""
    small, large = llama(), wider_llama(2, num_hidden_layers=4)
    fresh = snapshot(large)
    op = GrowthOperator(small, large, method=f"ligo+{depth}", per_layer=per_layer)
    got = snapshot(op.apply_())
    name = "model.layers.3.mlp.up_proj.weight"
    assert torch.equal(got[name], fresh[name]) == (depth in ("identity", "random"))
    for p in large.parameters():
        p.grad = torch.ones_like(p)
    op.pullback()
    assert all(bool(p.grad.isfinite().all()) for p in op.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width_init": "zeros"}, "width_init='zeros' is none of 'random', 'normal', 'selection', 'tile'"),
        ({"form": "sparse"}, "form='sparse' is neither 'prefix' nor 'dense'"),
        ({"per_layer": "both"}, "per_layer='both' is none of 'none', 'target', 'source'"),
        ({"depth_init": "zeros"}, "depth_init='zeros' is neither 'stack' nor 'interpolate'"),
        ({"warmth": 3}, r"option warmth is not one of ligo\+ligo's: depth_init, depth_noise, form"),
        ({"noise": 0.1}, "noise= is for fixed maps; a learned map has width_noise= and depth_noise="),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    small, large = llama(), wider_llama(2, num_hidden_layers=4)
    before = snapshot(large)
    with pytest.raises(GrowthError, match=message):
        GrowthOperator(small, large, method="ligo", **options)
    assert same(before, large)


def test_a_method_without_options_says_so() -> None:
    with pytest.raises(GrowthError, match=r"option form is not one of tile\+stack's: none"):
        GrowthOperator(llama(), wider_llama(2), method="tile", form="dense")


def test_options_go_to_the_method_that_takes_them() -> None:
    pair = methods.resolve("ligo")
    options = {"form": "dense", "tie": False, "depth_init": "interpolate"}
    assert methods.split_options(pair, options) == (
        {"form": "dense", "tie": False},
        {"depth_init": "interpolate"},
    )


SEEDED = [
    ("net2net", 0.0),
    ("aki", 0.0),
    ("pad", 0.0),
    ("ligo", 0.0),
    ("tile+ligo", 0.0),
    ("ligo+stack", 0.0),
]
NOISY = [("net2net", 0.1), ("aki", 0.1), ("pad", 0.1), ("tile", 0.1)]


@pytest.mark.parametrize(("method", "noise"), [*SEEDED, *NOISY])
def test_a_seed_repeats_bit_for_bit(method: str, noise: float) -> None:
    small = llama()

    def once(seed: int) -> nn.Module:
        torch.manual_seed(torch.seed())  # the global generator plays no part
        large = wider_llama(2, num_hidden_layers=3)
        return GrowthOperator(small, large, method=method, seed=seed, noise=noise).apply_()

    first = snapshot(once(1))
    assert same(first, once(1))
    assert not same(first, once(2))


def test_randomness_depends_on_the_key_and_not_on_the_order() -> None:
    one, other = context(), context()
    other.rng("something else").get_state()
    assert torch.equal(torch.rand(3, generator=one.rng("embed")), torch.rand(3, generator=other.rng("embed")))
    assert not torch.equal(torch.rand(3, generator=one.rng("embed")), torch.rand(3, generator=one.rng("ffn")))


@pytest.mark.parametrize("name", ["gpt2-lm", "llama-lm", "bert-mlm"])
def test_noise_breaks_symmetry_and_leaves_the_function(name: str) -> None:
    small = build(name, dtype=F64)
    width = 2 * small.config.hidden_size
    plain = lf.grow(small, width=width, method="tile")
    noisy = lf.grow(small, width=width, method="tile", noise=0.2)
    batch = make_batch(name, dtype=F64)
    with exact_rms_norm():
        before, without, after = (output(m, batch) for m in (small, plain, noisy))
    torch.testing.assert_close(without, before)
    torch.testing.assert_close(after, before)
    w = {which: weights(m) for which, m in (("plain", plain), ("noisy", noisy))}
    consumer = {
        "gpt2-lm": "transformer.h.0.mlp.c_fc.weight",
        "llama-lm": "model.layers.0.mlp.up_proj.weight",
        "bert-mlm": "bert.encoder.layer.0.intermediate.dense.weight",
    }[name]
    halves = {which: t[consumer].chunk(2, dim=0 if name == "gpt2-lm" else 1) for which, t in w.items()}
    torch.testing.assert_close(*halves["plain"])
    difference = (halves["noisy"][0] - halves["noisy"][1]).std() / halves["plain"][0].std()
    assert float(difference) > 0.1


def test_names_list_what_is_registered() -> None:
    width = ["aki", "copy", "ligo", "net2net", "pad", "random", "scratch", "tile"]
    depth = ["identity", "interpolate", "ligo", "random", "scratch", "stack", "zero"]
    assert methods.names() == {"width": width, "depth": depth, "both": ["ligo", "random", "scratch"]}


@pytest.mark.parametrize(
    ("given", "width", "depth"),
    [
        ("ligo", "ligo", "ligo"),
        ("tile", "tile", "stack"),
        ("zero", "copy", "zero"),
        ("net2net+identity", "net2net", "identity"),
        (("pad", "ligo"), "pad", "ligo"),
        (["stack"], "copy", "stack"),
        ("random+stack", "random", "stack"),
    ],
    ids=str,
)
def test_a_name_stands_for_a_pair(given: str, width: str, depth: str) -> None:
    pair = methods.resolve(given)
    assert tuple(m.name for m in pair) == (width, depth)


@pytest.mark.parametrize(
    "given",
    ["", "mango", "stack+tile", "tile+", "+stack", "tile+zero+stack", [], ("tile",) * 3, ("tile", "tile")],
    ids=str,
)
def test_unknown_methods_are_named(given: str) -> None:
    with pytest.raises(GrowthError, match=r"unknown method .*width methods: aki, .*depth methods: identity"):
        methods.resolve(given)


@pytest.fixture
def users_methods() -> Iterator[None]:
    """A width and a depth method as a user would write them, taken away again afterwards."""

    @methods.width("mirror")
    def mirror(axis: Axis, context: Context, *, scale: float = 1.0) -> AxisMaps:
        """New units are the old ones from last to first."""
        old = torch.arange(axis.small)
        index = torch.cat([old, old.flip(0)])[: axis.large]
        return AxisMaps(Selection(index, axis.small, torch.full((axis.large,), scale, dtype=F64)))

    @methods.depth("mirror")
    def mirror_layers(family: Family, context: Context) -> Map:
        """The old layers, then the old ones from last to first."""
        old = torch.arange(family.small)
        return Selection(torch.cat([old, old.flip(0)])[: family.large], family.small)

    yield
    del methods.WIDTH["mirror"], methods.DEPTH["mirror"]


def test_a_users_methods_need_no_other_file(users_methods: None) -> None:
    assert "mirror" in methods.names()["both"]
    small, large = llama(), wider_llama(2, num_hidden_layers=4)
    got = grown(small, large, "mirror", scale=2.0)
    ffn, embed = (torch.cat([torch.arange(n), torch.arange(n).flip(0)]) for n in (12, 16))
    for layer, source in enumerate((0, 1, 1, 0)):
        w = small.get_parameter(f"model.layers.{source}.mlp.down_proj.weight").detach()
        want = 4 * w[embed][:, ffn]
        torch.testing.assert_close(got[f"model.layers.{layer}.mlp.down_proj.weight"], want)
    with pytest.raises(GrowthError, match=r"option tilt is not one of mirror\+mirror's: scale"):
        lf.GrowthOperator(small, large, method="mirror", tilt=1)


def test_a_users_learned_method_is_learned(users_methods: None) -> None:
    @methods.width("mirror")
    def scaled(axis: Axis, context: Context) -> AxisMaps:
        """Copies, each with a scale to learn."""
        scale = torch.ones(axis.large, dtype=F64, requires_grad=True)
        return AxisMaps(Selection(torch.arange(axis.large) % axis.small, axis.small, scale))

    small, large = llama(), wider_llama(2)
    op = GrowthOperator(small, large, method="mirror")
    assert "width/ffn/out/scale" in dict(op.named_parameters())
    got = op()["model.layers.0.mlp.up_proj.weight"]
    got.sum().backward()
    grad = op.get_parameter("width/ffn/out/scale").grad
    assert grad is not None
    torch.testing.assert_close(grad, got.detach().sum(1))
