"""The baseline computes what it says, and the benchmark runs with its gate green."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ligo_fast as lf

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import (
    bench_models,
    bench_ops,
    checkpoint,
    cpu,
    gate,
    models,
    ops,
    peers,
    published,
    scaling,
    select,
)
from benchmarks import measure as facts
from benchmarks.published import LAYER_AXES, OUTER_AXES, Factors
from ligo_fast.bench.cases import CASES, OPS, group


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


def test_host_overhead_runs_without_a_gpu(tmp_path):
    options = ["--quick", "--rounds", "3", "--out", str(tmp_path / "host.json")]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-m", "benchmarks.host", *options], env=environment, check=True)
    report = json.loads((tmp_path / "host.json").read_text())
    calls = report["launches"]
    pullbacks = [f"pullback, {how}" for how in ("gradients where they were", "new gradients")]
    hot = {"apply_", *pullbacks, new_factors := "pullback, new gradients and factors"}
    assert all(calls[name] < calls[new_factors] for name in pullbacks), "some is found in the workspace"
    assert set(calls) == {*hot, "cold: apply_", "cold: pullback, new gradients"}
    assert all(0 < count < 30 for count in calls.values())
    for name in calls:
        assert 0 < report["microseconds"][name]["best"] <= report["microseconds"][name]["median"]
    assert set(report["ratio to 1000 data_ptr()"]) == hot


# everyone on the same work, and time against size


def test_peers_of_tiny_models_write_a_report(tmp_path):
    out = tmp_path / "peers.json"
    peers.main(["--quick", "--out", str(out)])
    run = json.loads(out.read_text())
    assert run["rows"].keys() == {
        "tiny-bert: apply", "tiny-bert: pullback", "tiny-net2net: apply", "tiny-blend: op", "tiny-expand: op",
        "tiny-select: op",
    }  # fmt: skip
    both = [run["rows"][f"tiny-bert: {work}"] for work in ("apply", "pullback")]
    assert all(row["variants"].keys() == {"ours", "plain torch", "published"} for row in both)
    assert "FastKron" in run["rows"]["tiny-expand: op"]["variants"]
    for row in run["rows"].values():
        for part in row["variants"].values():
            if part["seconds"] is None:
                assert "not installed" in part["reason"]
                continue
            assert all(check["ours"] < 1e-6 for check in part["gate"].values())
            assert part["seconds"]["q1"] <= part["seconds"]["median"] <= part["seconds"]["q3"]


def test_a_peer_that_is_wrong_has_no_number(monkeypatch):
    right = peers.Published.forward

    def wrong(self):
        right(self)
        self.grown = {name: 1.001 * tensor for name, tensor in self.grown.items()}

    monkeypatch.setattr(peers.Published, "forward", wrong)
    watch = peers.Stopwatch(torch.device("cpu"), cold=False)
    (_, apply), _ = peers.measure("tiny-bert", watch, peers.QUICK, compiled=False)
    assert apply["status"] == "measured" and apply["variants"]["published"]["seconds"] is None
    assert "exact" in apply["variants"]["published"]["reason"] and "published" not in apply["speed-up"]


def test_a_peer_that_writes_nothing_has_no_number(monkeypatch):
    monkeypatch.setattr(peers, "by_index", lambda items: lambda: None)
    watch = peers.Stopwatch(torch.device("cpu"), cold=False)
    ((_, row),) = peers.measure("tiny-net2net", watch, peers.QUICK, compiled=False)
    if peers.INDEX in row["variants"]:  # the compiled selection is there
        assert row["variants"][peers.INDEX]["seconds"] is None
    assert row["variants"]["ours"]["seconds"]["median"] > 0


def test_a_wrong_op_has_no_number(monkeypatch):
    monkeypatch.setattr(ops.OpBench, "ours", lambda self: self.products() * (1 + 1e-5))
    watch = peers.Stopwatch(torch.device("cpu"), cold=False)
    row = ops.OpBench(OPS["tiny-expand"]).measure(watch, peers.QUICK)
    assert row["status"] == "red gate" and "variants" not in row


@pytest.mark.parametrize("name", [name for name in OPS if name.startswith("tiny")])
def test_every_way_to_do_an_op_is_right(name):
    bench = ops.OpBench(OPS[name])
    for peer, run in bench.peers().items():
        if peer != ops.FASTKRON or ops.importlib.util.find_spec("pyfastkron"):
            torch.testing.assert_close(run().double(), bench.exact(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-blend", "tiny-expand", "tiny-select"])
def test_the_pytest_benchmarks_of_ops_run(name, benchmark):
    bench_ops.test_op(name, "ours", benchmark, peers.Stopwatch(torch.device("cpu"), cold=False))


@pytest.mark.parametrize(("name", "work"), [("tiny-bert", "pullback"), ("tiny-aki", "apply")])
def test_the_pytest_benchmarks_of_models_run(name, work, benchmark):
    bench_models.test_growth(name, work, benchmark, peers.Stopwatch(torch.device("cpu"), cold=False))


def test_the_pytest_benchmarks_stop_at_a_wrong_result(benchmark, monkeypatch):
    monkeypatch.setattr(ops.OpBench, "ours", lambda self: self.products() * (1 + 1e-5))
    with pytest.raises(AssertionError):
        bench_ops.test_op("tiny-blend", "ours", benchmark, peers.Stopwatch(torch.device("cpu"), cold=False))


def test_a_stopped_scaling_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "_git", lambda *arguments: "" if arguments[0] == "status" else "abc")
    out, arguments = tmp_path / "scaling.json", ["--quick", "--out", str(tmp_path / "scaling.json")]
    measured, right = [], scaling.measure

    def once(case, watch, effort):
        if measured:
            raise KeyboardInterrupt
        measured.append(case.name)
        return right(case, watch, effort)

    monkeypatch.setattr(scaling, "measure", once)
    with pytest.raises(KeyboardInterrupt):
        scaling.main(arguments)
    assert json.loads(out.read_text())["rows"].keys() == {"bert"}
    monkeypatch.setattr(scaling, "measure", right)
    first = json.loads(out.read_text())["rows"]["bert"]
    scaling.main(arguments)
    rows = json.loads(out.read_text())["rows"]
    assert rows["bert"] == first and rows.keys() == {"bert", "net2net"}
    monkeypatch.setattr(facts, "_git", lambda *arguments: "" if arguments[0] == "status" else "another")
    scaling.main(arguments)
    assert json.loads(out.read_text())["rows"]["bert"] != first


def test_results_do_not_make_a_tree_dirty(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments], cwd=tmp_path, check=True
        )

    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "code.py").touch()
    (results / "a.json").touch()
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "m")
    monkeypatch.setattr(facts, "FOLDER", results.parent)
    assert facts.provenance([])["dirty"] is False
    (results / "a.json").write_text("{}")
    (results / "b.json").touch()
    assert facts.provenance([])["dirty"] is False
    (tmp_path / "code.py").write_text("1")  # outside the folder that git is called in
    assert facts.provenance([])["dirty"] is True


def test_what_is_too_large_is_not_measured(tmp_path):
    out = tmp_path / "scaling.json"
    scaling.main(["--quick", "--gigabytes", "4.0", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert {row["status"] for row in rows.values()} == {"does not fit"}
    assert rows["bert"]["reason"] == "takes 4.0 GB of memory, there is room for 4.0"
    scaling.main(["--quick", "--gigabytes", "4.1", "--out", str(out)])
    assert {row["status"] for row in json.loads(out.read_text())["rows"].values()} == {"measured"}


def test_sizes_up_to_3b_fit_when_others_use_a_third_of_24_gb():
    sizes = {name: scaling.too_large(case, 16e9) for name, case in group("scaling").items()}
    assert {name for name, row in sizes.items() if row} == {"7b-ligo", "7b-net2net"}
    assert scaling.free_bytes() > 1e8
