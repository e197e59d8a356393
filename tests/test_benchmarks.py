"""The baseline computes what it says, and the benchmark runs with its gate green."""

import json
import sys
from pathlib import Path

import pytest
import torch

import ligo_fast as lf

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import checkpoint, cpu, gate, models, published, select
from benchmarks.published import LAYER_AXES, OUTER_AXES, Factors
from ligo_fast.bench.cases import CASES


def dense_reference(small, width, depth):
    """Every large parameter by the float64 oracle."""
    maps = {axis: dense.double() for axis, dense in width.items()} | {"head": width["embed"].double()}
    state = dict(small.named_parameters())

    def grow(stack, axes, mix):
        stack = stack.detach().reshape(*stack.shape[:2], -1)
        out_map, in_map = (
            maps.get(axis, torch.eye(n)) for axis, n in zip((*axes, ""), stack.shape[1:], strict=False)
        )
        return lf.reference.grow(stack, mix, out_map, in_map)

    large = {n: grow(state[n][None], a, None)[0] for n, a in OUTER_AXES.items() if n in state}
    for name, axes in LAYER_AXES.items():
        layers = [state[f"bert.encoder.layer.{i}.{name}"] for i in range(small.config.num_hidden_layers)]
        grown = grow(torch.stack(layers), axes, depth[name])
        large |= {f"bert.encoder.layer.{i}.{name}": rows for i, rows in enumerate(grown)}
    return large


@pytest.mark.parametrize("shared_maps", [True, False])
def test_published_sequence_is_the_dense_formula(shared_maps):
    small, large = models.build(CASES["tiny-bert"])
    small, large = small.double(), large.double()
    width, depth = published.initial_maps(small, large)
    factors = Factors.from_maps(width, depth, shared_maps).double()
    grown = published.grow(published.stack_layers(small, tied=True), factors)
    expected = dense_reference(small, width, depth)
    assert grown.keys() == expected.keys() == dict(large.named_parameters()).keys()
    for name, tensor in grown.items():
        torch.testing.assert_close(tensor.flatten(), expected[name].flatten(), rtol=1e-12, atol=1e-12)
        assert tensor.shape == large.get_parameter(name).shape


def test_untied_decoder_grows_as_the_embedding_does():
    small, large = models.build(CASES["tiny-bert"])
    factors = Factors.from_maps(*published.initial_maps(small, large), shared_maps=False)
    grown = published.grow(published.stack_layers(small, tied=False), factors)
    embedding = grown["bert.embeddings.word_embeddings.weight"]
    torch.testing.assert_close(grown["cls.predictions.decoder.weight"], embedding)


def test_maps_without_an_identity_block_are_refused():
    with pytest.raises(ValueError, match="identity"):
        published.learned_rows(torch.zeros(3, 2))


def test_flops_by_hand():
    # (2 x 3) -> (5 x 7): in 2*3 products for each of 4 columns, out 2 products for each of 3 x 7 entries
    assert models.expand_flops((2, 3), (5, 7)) == 2 * (2 * 3 * 4 + 3 * 2 * 7)
    # a bias (2,) -> (5,): two products for each of 3 rows
    assert models.expand_flops((2,), (5,)) == 2 * 3 * 2


def test_flops_of_a_model_count_every_large_layer():
    small, large = models.build(CASES["tiny-bert"])
    layer = [n for n, _ in large.named_parameters() if ".layer.0." in n]
    shapes = {n: p.shape for n, p in small.named_parameters()}
    one = sum(models.expand_flops(shapes[n], large.get_parameter(n).shape) for n in layer)
    outer = [(n, p) for n, p in large.named_parameters() if ".layer." not in n]
    rest = sum(models.expand_flops(shapes[n], p.shape) for n, p in outer)
    assert models.design_flops(small, large) == 4 * one + rest


@pytest.mark.parametrize(
    "ours", [{"w": torch.full((3,), 1 + 2e-7)}, {"w": torch.full((3,), torch.nan)}, {}, {"v": torch.ones(3)}]
)
def test_gate_is_red_for_wrong_or_missing_tensors(ours):
    exact = {"w": torch.ones(3, dtype=torch.float64)}
    plain = {"w": torch.full((3,), 1 + 1e-7)}
    assert gate.compare({"all": plain}, {"all": plain}, {"all": exact}, allowed=1.5)["all"]["green"]
    assert not gate.compare({"all": ours}, {"all": plain}, {"all": exact}, allowed=1.5)["all"]["green"]


def test_red_gate_reports_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lf.GrowthOperator, "apply_", lambda op: op.large)
    monkeypatch.setattr(cpu.memory, "extra_bytes", lambda quick: {})
    with pytest.raises(SystemExit, match="gate is red"):
        cpu.main(["--quick", "--out", str(tmp_path / "cpu.json")])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def threads():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def test_quick_run_writes_a_report(tmp_path, threads):
    out = tmp_path / "cpu.json"
    cpu.main(["--quick", "--busy", "--rounds", "2", "--learning-rounds", "2", "--out", str(out)])
    report = json.loads(out.read_text())
    assert all(check["green"] for check in report["gate"].values())
    assert {"hardware", "versions", "commit", "dirty", "command", "date"} <= report.keys()
    assert report["ratios"]["apply_ / published forward"]["median"] > 0


def test_selection_of_tiny_models_writes_a_report(tmp_path):
    out = tmp_path / "select.json"
    select.main(["--quick", "--rounds", "2", "--out", str(out)])
    run = json.loads(out.read_text())
    assert run["rows"].keys() == select.ROWS.keys()
    for row in run["rows"].values():
        assert row["status"] == "measured" and row["over index"]["median"] > 0


def test_a_wrong_selection_reports_nothing(tmp_path, monkeypatch):
    right = select.by_index

    def wrong(items):
        run = right(items)
        return lambda: (run(), items[0].out.add_(1))

    monkeypatch.setattr(select, "by_index", wrong)
    with pytest.raises(SystemExit, match="red gate"):
        select.main(["--quick", "--rows", "net2net", "--out", str(tmp_path / "select.json")])
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_benchmark_makes_a_model_and_measures_a_process(tmp_path):
    checkpoint.make_small(tmp_path / "small", checkpoint.QUICK)
    lf.checkpoint.grow_checkpoint(tmp_path / "small", tmp_path / "a", layers=checkpoint.LAYERS)
    seconds, peak, busy = checkpoint.measure(
        [sys.executable, "-S", "-c", checkpoint.COPY, tmp_path / "a", tmp_path / "b"]
    )
    assert 0 < busy < 60 and 0 < seconds < 60 and 1 << 20 < peak < 1 << 28
    assert checkpoint.tensors_equal(tmp_path / "a", tmp_path / "b") == 24 * 9 + 3
    with pytest.raises(RuntimeError, match="boom"):
        checkpoint.measure([sys.executable, "-c", "raise SystemExit('boom')"])
    lf.checkpoint.grow_checkpoint(tmp_path / "small", tmp_path / "c", layers="0-15,0-7")
    with pytest.raises(SystemExit, match="differs"):
        checkpoint.tensors_equal(tmp_path / "a", tmp_path / "c")
