"""`ligo-fast bench`: right results have numbers, wrong ones do not, and bad input is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

import ligo_fast as lf
from ligo_fast.bench import command, measure, timing
from ligo_fast.bench.cases import CASES, OPS, group
from ligo_fast.bench.gate import Gate, is_green
from ligo_fast.bench.models import pair, read_shape
from ligo_fast.cli import app

CPU = torch.device("cpu")


@pytest.fixture
def call(monkeypatch):
    """The command with warm caches and small rates: exit code, standard output, standard error."""
    monkeypatch.setattr(command, "Stopwatch", partial(timing.Stopwatch, cold=False))
    monkeypatch.setattr(measure, "effort_for", lambda device, seconds: measure.QUICK)

    def run(*arguments: object) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    return run


def test_rows_as_json(call):
    code, out, _ = call("tiny-bert", "tiny-net2net", "--shape", "1x16:2x24", "--json")
    report = json.loads(out)
    assert code == 0 and report["versions"]["torch"] == torch.__version__ and report["device"] == "cpu"
    rows = {(row["case"], row["work"]): row for row in report["rows"]}
    both = [(name, work) for name in ("tiny-bert", "1x16:2x24") for work in ("apply", "pullback")]
    assert rows.keys() == {*both, ("tiny-net2net", "apply")}
    for row in rows.values():
        assert row["status"] == "measured" and row["speed-up"]["plain torch"]["median"] > 0
        for part in row["variants"].values():
            assert is_green(part["gate"]) and part["gb_per_second"] > 0 and part["floor / time"]["median"] > 0
    # the weights and C once: (2, 32) to (4, 48), ffn four times that, one map for each of five axes
    row = rows["tiny-bert", "apply"]
    small, large = row["parameters"]
    factors = sum(p.numel() for p in CASES["tiny-bert"].operator().parameters())
    assert row["fewest bytes"] == 4 * (small + large + factors)


def test_the_table(call):
    code, out, _ = call("tiny-stack", "--dtype", "bfloat16", "--method", "interpolate")
    words = " ".join(out.replace("│", " ").split())
    assert code == 0 and "ms (quartiles)" in words and "x" in words and "bfloat16" in words


def test_the_list_and_the_help(call):
    code, out, _ = call("--list", "--json")
    assert code == 0 and json.loads(out).keys() == CASES.keys()
    code, out, _ = call("--help")
    assert code == 0 and "Example" in out and "ligo-fast bench" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "'nothing' is none of bert"),
        (["--shape", "6x512"], "6x512:12x768"),
        (["--shape", "6x512:3x768"], "at least the small's"),
        (["--shape", "0x512:3x768"], "at least 1"),
        (["--shape", "2x12:3x20"], "multiples of 8"),
        (["--shape", "2x16:3x24", "--model", "vit"], "'vit' is none of bert, gpt2, llama"),
        (["tiny-bert", "--method", "nothing"], "unknown method 'nothing'"),
        (["tiny-bert", "--dtype", "int8"], "dtype 'int8' is none of float32"),
        (["tiny-bert", "--device", "cuda:9"], "torch finds"),
        (["tiny-bert", "--profile", "/nowhere/trace.json"], "/nowhere/trace.json"),
    ],
)
def test_bad_input_is_one_line_and_code_2(call, arguments, said):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "") and said in err
    assert err.startswith("ligo-fast: ") and err.count("\n") == 1


def test_what_does_not_fit_is_not_begun(call, monkeypatch):
    monkeypatch.setattr(command, "free_bytes", lambda device: 10_000)
    code, _, err = call("tiny-bert")
    assert code == 2 and "0.0 GB of memory are free on cpu" in err


def test_a_wrong_result_has_no_number_and_code_3(call, monkeypatch):
    right = lf.GrowthOperator.apply_

    def wrong(op):
        large = right(op)
        large.get_parameter("encoder.layer.3.output.dense.weight").detach()[7, 11] += 1e-3
        return large

    monkeypatch.setattr(lf.GrowthOperator, "apply_", wrong)
    code, out, _ = call("tiny-bert", "--json")
    (row, _) = json.loads(out)["rows"]
    assert code == 3 and row["status"] == "red gate" and "variants" not in row
    code, out, _ = call("tiny-bert")
    assert code == 3 and "red gate" in out.replace("\n", " ")


def test_a_refused_case_discards_no_other(call):
    code, out, _ = call("tiny-tile", "tiny-pad", "--method", "scratch", "--json")
    assert code == 3 and all("nothing to time" in row["reason"] for row in json.loads(out)["rows"])
    code, out, _ = call("tiny-stack", "--shape", "1x16:2x24", "--method", "scratch+stack")
    assert code == 3 and out.replace("\n", " ").count("failed") == 2


def test_every_case_must_fit_before_one_is_run(call, monkeypatch):
    def refuse(case, device):
        if case.name == "tiny-pad":
            raise lf.GrowthError("case tiny-pad: too large")

    monkeypatch.setattr(command, "check_fits", refuse)
    monkeypatch.setattr(command, "_rows", lambda *args: pytest.fail("begun"))
    code, _, err = call("tiny-bert", "tiny-pad")
    assert code == 2 and "too large" in err


def test_without_plain_torch_a_pullback_has_no_yardstick():
    def fail():
        raise RuntimeError("no memory")

    bench = measure.Bench(CASES["tiny-bert"].operator(), timing.Stopwatch(CPU, cold=False), measure.QUICK)
    row = bench.measure("pullback", {measure.PLAIN: measure.Peer(timing.Variant(fail), dict)})
    assert (row["status"], row["reason"]) == ("failed", "plain torch failed: no yardstick")


def test_the_trace_names_the_calls(call, tmp_path):
    out = tmp_path / "trace.json"
    assert call("tiny-bert", "tiny-net2net", "--profile", out)[0] == 0
    names = {event.get("name") for event in json.loads(out.read_text())["traceEvents"]}
    assert names >= {"tiny-bert: apply_", "tiny-bert: pull-back", "tiny-net2net: apply_", "aten::mm"}


def test_it_needs_no_model_library():
    code = "import sys, ligo_fast.bench.command; print('transformers' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False False\n", done.stderr


# the gate


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2", "tiny-llama", "tiny-aki", "tiny-pad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_is_green_for_right_weights_and_red_for_any_wrong_one(name, dtype):
    op = replace(CASES[name], dtype=dtype).operator()
    op.apply_()
    gate, large = Gate(op), dict(op.large.named_parameters())
    assert is_green(gate.outputs(large))
    for wrong in (next(n for n, p in large.items() if p.dim() == k) for k in (1, 2)):
        kept = large[wrong].detach().clone()
        large[wrong].detach().view(-1)[-1] += 1.0 if dtype == torch.bfloat16 else 1e-3
        assert not is_green(gate.outputs(large))
        large[wrong].detach().copy_(kept)
    large[wrong].detach().view(-1)[0] = torch.nan
    assert not is_green(gate.outputs(large))


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2", "tiny-llama"])
def test_the_gates_gradients_are_those_of_autograd(name):
    """In float64 the pull-back of the gate's gradients is what the gate says, factor by factor."""
    op = replace(CASES[name], dtype=torch.float64).operator()
    measure.random_gradients(op)
    op.apply_()
    gate = Gate(op)
    gate.begin_gradients()
    op.pullback()
    for p in op.parameters():
        truth = gate._leaves[id(p)].grad
        torch.testing.assert_close(p.grad, truth, rtol=1e-10, atol=1e-12)
    found = {n: p.grad.clone() for n, p in op.named_parameters()}
    assert is_green(gate.gradients(found, found))
    next(iter(found.values())).view(-1)[0] *= 1 + 1e-6
    assert not is_green(gate.gradients(found, {n: p.grad for n, p in op.named_parameters()}))


def test_the_gate_makes_no_matrix_of_a_vocabulary():
    op = replace(CASES["tiny-llama"], pair=pair("llama", (1, 8), (1, 16), 8, vocab=100_000)).operator()
    op.apply_()
    watch = timing.Stopwatch(CPU, cold=False)
    held = watch.extra_bytes(timing.Variant(lambda: Gate(op).outputs(dict(op.large.named_parameters()))))
    assert held is None or held < 64 << 20


def test_plain_torch_must_be_near_the_truth_too():
    """A yardstick that is as wrong as the result does not make it right."""
    op = CASES["tiny-bert"].operator()
    measure.random_gradients(op)
    op.apply_()
    gate = Gate(op)
    gate.begin_gradients()
    op.pullback()
    wrong = {n: p.grad * 1.01 for n, p in op.named_parameters()}
    assert not is_green(gate.gradients(wrong, wrong))


# cases and timing


def test_every_case_can_be_built_and_says_its_size():
    for case in CASES.values():
        small, large = case.pair.parameters()
        assert small < large and case.nbytes == (small + large) * case.dtype.itemsize
        lf.methods.resolve(case.method)
    sizes = [case.pair.parameters()[1] for case in group("scaling").values()]
    assert sizes == sorted(sizes) and 9e6 < sizes[0] < 12e6 and 6e9 < sizes[-1] < 8e9
    assert all(1.5 < b / a < 2.5 for a, b in (c.pair.parameters() for c in group("scaling").values()))
    assert {name.rpartition("-")[2] for name in OPS} >= {"blend", "expand", "select"}


def test_shapes():
    assert read_shape("6x512:12x768", "bert") == CASES["bert"].pair
    assert read_shape("12x768:24x1024", "gpt2") == CASES["gpt2"].pair
    assert read_shape("2x24:4x40", "llama") == pair("llama", (2, 24), (4, 40), 8)


def test_plain_torch_switches_the_compiled_code_off_for_a_while():
    compiled = timing.cpu.extension
    with pytest.raises(RuntimeError, match="inside"), timing.backend("plain torch"):
        assert timing.cpu.extension is None and timing.os.environ["LIGO_FAST_BACKEND"] == "torch"
        raise RuntimeError("inside")
    assert timing.cpu.extension is compiled and "LIGO_FAST_BACKEND" not in timing.os.environ


def test_peak_memory_is_that_of_the_call():
    watch = timing.Stopwatch(CPU, cold=False)
    held = watch.extra_bytes(timing.Variant(lambda: torch.ones(25 << 18).sum()))
    if held is None:
        pytest.skip("the system does not tell")
    assert 24 << 20 < held < 30 << 20
    assert watch.extra_bytes(timing.Variant(lambda: None)) < 2 << 20
    kept: list[torch.Tensor] = []
    prepared = timing.Variant(kept.clear, lambda: kept.append(torch.ones(25 << 18)), kept.clear)
    assert 24 << 20 < watch.extra_bytes(prepared) < 30 << 20  # what is prepared for the call counts


def test_every_variant_runs_in_every_round_and_each_comes_first():
    order = []
    variants = {n: timing.Variant(partial(order.append, n)) for n in "abc"}
    times = timing.Stopwatch(CPU, cold=False).seconds(variants, 3)
    assert "".join(order) == "abcbcacab" and all(len(t) == 3 for t in times.values())
