"""The GPU check without a GPU: the rehearsal runs every stage, and nothing of it passes for a result."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest
import torch

from benchmarks import (
    gate,
    gpu,
    gpu_goals,
    gpu_rows,
    gpu_select,
    gpu_table,
    gpu_tests,
    jobs,
    learning_memory,
    rounding,
    sanitize,
    select_cases,
)
from benchmarks.models import model as real_model
from benchmarks.report import markdown, systems
from benchmarks.sequence import Sequence
from ligo_fast.bench.cases import CASES, group
from ligo_fast.bench.measure import QUICK, Bench, random_gradients
from ligo_fast.bench.timing import Stopwatch, backend
from ligo_fast.execution import Execution
from ligo_fast.kernels.launch import Launches
from ligo_fast.kernels.table import Matrix
from ligo_fast.native import cpu, noise

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """The rehearsal's exit status, what it printed and its JSON."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(out)]
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "LIGO_FAST_BACKEND")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done, json.loads(out.read_text())


def test_the_rehearsal_runs_every_stage(rehearsal):
    done, run = rehearsal
    assert done.returncode == 0, done.stdout + done.stderr
    status = {stage["stage"]: stage["status"] for stage in run["stages"]}
    assert status == {
        "build": "missing",
        "tests 1/1": "passed",
        "kernel cases 1/1": "passed",
        "compile tiny-gpt2": "passed",
        "tiny-gpt2": "passed",
        "tiny-llama": "passed",
        "compute-sanitizer": "missing",
        "host": "passed",
        "select": "passed",
        "learning tiny": "passed",
    }
    assert run["host"]["microseconds"].keys() >= {"apply_", "pullback, new gradients"} and run["goals"] == []
    assert run["rehearsal"] is True and "rehearsal: nothing was measured" in done.stdout
    assert {"hardware", "versions", "commit", "dirty", "command", "date"} <= run.keys()


def test_the_rehearsed_rows_have_every_column(rehearsal):
    _, run = rehearsal
    learning = run["rows"]["learning tiny"]["learning"]
    assert learning["status"] == "measured" and learning["peak"] > 0 and len(learning["losses"]) == 20
    for name, row in run["rows"].items():
        if name == "learning tiny":
            continue
        for work in ("apply", "pullback"):
            part = row[work]
            assert part["status"] == "measured" and part["pieces left to torch"] == 0
            assert all(check["green"] for check in part["gate"].values())
            assert {"ours", "plain torch", "published", "compiled"} == part["variants"].keys()
            assert part["variants"]["compiled"]["reason"] == "not in a rehearsal"
            assert part["variants"]["ours"]["floor / time"]["median"] > 0
            alone = part["variants"]["ours"].get("from the factors alone")
            assert alone["seconds"]["median"] > 0 if work == "pullback" else alone is None
            if (name, work) != ("tiny-llama", "pullback"):  # two factors of one number: no average of errors
                assert part["speed-up"]["published"]["median"] > 0
    step = run["rows"]["tiny-gpt2"]["step"]
    assert step["learning / plain"]["median"] > 1


def test_the_rehearsed_selections_have_every_column(rehearsal):
    _, run = rehearsal
    assert run["select"].keys() == group("select").keys()
    for row in run["select"].values():
        if cpu.extension is None:
            assert row["status"] == "skipped"
            continue
        assert row["status"] == "measured" and row["of copy"]["median"] > 0
        assert row["speed-up"].keys() == {"foreach", "index"} and row["compiled"] == "not in a rehearsal"


def test_a_selection_is_compiled_after_it_was_measured(monkeypatch):
    if cpu.extension is None:  # a row is skipped
        return
    monkeypatch.setattr(gpu_select, "group", lambda name: {"net2net": CASES["tiny-net2net"]})
    monkeypatch.setattr(gpu_select, "Stopwatch", lambda device: Stopwatch(device, cold=False))
    monkeypatch.setattr(gpu_select.torch, "compile", lambda run: run)
    row = {"seconds": {"ours": {}}, "speed-up": {"index": {}}, "compiled": "not begun"}
    gpu_select.add_compiled("net2net", row, CPU)
    assert row["compiled"] == "measured" and row["seconds"]["compiled"]["median"] > 0
    assert row["speed-up"].keys() == {"index", "compiled"}

    def broken(run):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(gpu_select.torch, "compile", broken)
    row = {"seconds": {}, "speed-up": {}}
    gpu_select.add_compiled("net2net", row, CPU)
    assert row == {"seconds": {}, "speed-up": {}, "compiled": "RuntimeError: no compiler"}


def test_the_compiled_cases_are_watched_and_a_wrong_one_is_noticed(monkeypatch):
    cases = dict(select_cases.cases(CPU))
    assert {name.split()[0] for name in cases} >= {"select,", "sums,", "4097"}
    if cpu.extension is None:
        return
    assert not any(run() for run in cases.values())
    right = noise.normal
    monkeypatch.setattr(select_cases.noise, "normal", lambda *args: right(*args) + 1e-6)
    assert cases["1023 normal numbers"]()


def test_a_rehearsal_is_not_reported(rehearsal, tmp_path, monkeypatch):
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    (tmp_path / "gpu.json").write_text(json.dumps(rehearsal[1]))
    with pytest.raises(SystemExit, match="rehearsal"):
        systems.gpu()


def test_a_measured_run_fills_the_tables(rehearsal, tmp_path, monkeypatch):
    """The rehearsal's numbers under the names of real rows, as a GPU would write them."""
    run = json.loads(json.dumps(rehearsal[1]))
    row = run["rows"]["tiny-gpt2"]
    facts = {"launches": 5, "extra_bytes": 3 << 20, "host_ms": 0.25, "host_sync": False}
    for work in ("apply", "pullback"):
        row[work]["variants"]["ours"] |= facts
        row[work]["graph"] = "equal"
    failed = {"status": "failed", "reason": "OutOfMemoryError: 80 GiB"}
    facts = {"launches": 1, "host_ms": 0.1}
    measured = {"status": "measured", "gb_per_second": 2000.0, "graph": "equal", "facts": facts}
    measured |= {
        "seconds": {"ours": dict.fromkeys(("median", "q1", "q3"), 2e-4)},
        "of copy": {"median": 0.93},
    }
    measured |= {"speed-up": {"foreach": {"median": 1.5}, "index": {"median": 4.0}}}
    run["select"] = {"net2net": measured, "pad": {"status": "skipped", "reason": "not built"}}
    run |= {"rehearsal": False, "rows": {"gpt2": row, "llama-7b": failed}}
    run["rows"]["learning 7b"] = rehearsal[1]["rows"]["learning tiny"]
    run["hardware"] |= {"gpu": "a GPU", "driver": "1.2"}
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    (tmp_path / "gpu.json").write_text(json.dumps(run))
    lines = systems.gpu().splitlines()
    (apply,) = (line for line in lines if line.startswith("| GPT-2") and "tf32 products: `apply_`" in line)
    cells = [cell.strip() for cell in apply.split("|")[1:-1]]
    assert len(cells) == len(gpu_table.GROWTH_HEADER)
    assert cells[6] == "not measured" and cells[8:] == ["5", "3 MiB", "0.25 ms, missed", "no", "equal"]
    (llama, _) = (line for line in lines if line.startswith("| Llama-style 1.1B"))
    assert "not measured: failed, OutOfMemoryError: 80 GiB" in llama
    assert sum(line.startswith("| BERT") and "not measured" in line for line in lines) == 6
    (learning,) = (line for line in lines if line.startswith("| Learning"))
    assert " GB | " in learning and " s | " in learning and "not measured" not in learning
    assert "a GPU, driver 1.2" in lines[-1]
    (net2net,) = (line for line in lines if "net2net+stack" in line)
    cells = [cell.strip() for cell in net2net.split("|")[1:-1]]
    assert len(cells) == len(gpu_table.SELECT_HEADER)
    assert cells[1:] == [
        "0.2 (0.2 to 0.2)",
        "2000",
        "93%, met",
        "1.5x",
        "4.0x",
        "not measured",
        "1, met",
        "0.10 ms",
        "equal",
    ]
    assert any("pad+zero" in line and "not measured: skipped, not built" in line for line in lines)
    verdicts = gpu_goals.verdicts(run, list(group("growth")), list(group("select")))
    said = {(v["row"], v["goal"].split(" at ")[0]): v["verdict"] for v in verdicts}
    assert len(said) == len(verdicts) == 4 * 2 * 5 + 2 + 2 * 6
    assert said["gpt2: apply", "milliseconds of the host"] == "missed"
    assert said["gpt2: apply", "over the published sequence, compiled"] == "not measured"
    assert (
        said["select net2net", "rate over a copy's"]
        == said["select net2net", "launches of a selection"]
        == "met"
    )
    assert {v for (row, _), v in said.items() if row.startswith(("llama", "bert", "select pad"))} == {
        "not measured"
    }
    assert gpu_goals.summary(verdicts).endswith(
        f"{sum(v == 'not measured' for v in said.values())} not measured"
    )


def test_without_a_gpu_there_is_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_stage_that_fails_or_hangs_is_recorded_and_the_others_run(tmp_path):
    run = [sys.executable, "-c"]
    work = [
        jobs.Job("bad", [*run, "print('first\\n' * 20 + 'why'); raise SystemExit(3)"], 60),
        jobs.Job("slow", [*run, "import time; print('begun', flush=True); time.sleep(60)"], 2),
        jobs.Job("good", [*run, "print('done')"], 60),
    ]
    results = jobs.run_together(work, monotonic() + 60, tmp_path / "log")
    assert [r["status"] for r in results] == ["failed", "timed out", "passed"]
    assert results[0]["tail"] == ["first"] * 14 + ["why"] and results[2]["tail"] == ["done"]
    bad, slow = "first\n" * 20 + "why", "begun"
    assert (tmp_path / "log").read_text() == f"==== bad: failed\n{bad}\n\n==== slow: timed out\n{slow}\n\n"


@pytest.mark.parametrize(
    ("stages", "status"),
    [
        ([], 0),
        ([{"status": "passed"}, {"status": "missing", "optional": True}], 0),
        ([{"status": "passed"}, {"status": "missing"}], 1),  # no pytest, no compute-sanitizer
        ([{"status": "skipped", "optional": False}], 1),
        ([{"status": "failed"}], 1),
        ([{"status": "timed out"}], 1),
    ],
)
def test_the_exit_status_says_whether_all_that_has_to_run_did(stages, status):
    check = gpu.Check(argparse.Namespace(rehearse=True, out=None), [], monotonic() + 60)
    check.report["stages"] = stages
    assert check.status == status


def test_a_stage_that_has_to_run_is_missed_and_an_optional_one_is_not(monkeypatch):
    check = gpu.Check(argparse.Namespace(rehearse=False, out=None), [], monotonic())
    check.more()
    assert {s["status"] for s in check.report["stages"]} == {"skipped"} and check.status == 0
    monkeypatch.setattr(gpu.gpu_machine, "find_tool", lambda name: None)
    check.sanitizer()
    assert check.report["stages"][-1]["status"] == "missing" and check.status == 1
    check.report["stages"].clear()
    check.rows()
    assert (
        check.report["rows"]["llama-7b"] == {"status": "skipped", "reason": "0 s were left"}
        and check.status == 1
    )


def test_a_full_run_does_what_has_goals_first(monkeypatch):
    """With a GPU that every process is content with: what is run, in which order, side by side or alone."""
    begun, commands = [], {}

    def run(work, deadline, log):
        begun.append([job.name.partition(" ")[0] for job in work])
        commands.update({job.name: job.command for job in work})
        late = {"gpt2-bf16": "timed out"}  # the last part ends at the deadline
        return [
            {"stage": job.name, "status": late.get(job.name, "passed"), "seconds": 0.0, "tail": ["said"]}
            for job in work
        ]

    monkeypatch.setattr(gpu, "run_together", run)
    monkeypatch.setattr(gpu.gpu_machine, "find_tool", lambda name: f"/cuda/{name}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    check = gpu.Check(argparse.Namespace(rehearse=False, out=None), [], monotonic() + gpu.SECONDS)
    for stage in gpu.STAGES:
        getattr(check, stage)()
    check.judge()
    builds = importlib.util.find_spec("pybind11") is not None
    assert begun == [
        [*["build"] * builds, "compile", "compile"],
        [*["tests"] * 4, *["kernel"] * 4],
        *[["bert"], ["gpt2"], ["llama-7b"]],
        ["compute-sanitizer"] * 4,
        *[["select"], ["learning"], ["bert-bf16"], ["gpt2-bf16"], ["host"]],
    ]
    for name in ("kernel cases 1/4", "compute-sanitizer memcheck"):
        assert ("--with-csrc" in commands[name]) == builds
    assert check.status == 0 and {goal["verdict"] for goal in check.report["goals"]} == {"not measured"}


def test_goals():
    floor, step = gpu_goals.FLOOR, gpu_goals.STEP
    assert [floor.verdict(v) for v in (0.7, 0.69, None)] == ["met", "missed", "not measured"]
    assert [step.verdict(v) for v in (1.03, 1.04)] == ["met", "missed"]
    assert floor.mark("70%", 0.7) == "70%, met" and floor.mark("not measured", None) == "not measured"
    assert str(step) == "learning step over a plain one at most 1.03"


def test_the_tests_of_the_device_are_those_that_use_it():
    files = gpu_tests.files()
    kernels = {"kernels", "quadrants", "library", "backends", "release_grads", "surroundings", "tiles"}
    assert {f"tests/test_{name}.py" for name in kernels} <= set(files)
    assert not {"tests/test_operator.py", "tests/test_optimizer.py", "tests/test_ops.py"} & set(files)
    assert not gpu_tests.lacking()
    found = collected("1/1", "tests/test_release_grads.py", "tests/test_tiles.py")
    assert {name.partition("[")[0] for name in found if "release_grads" in name} == {
        "tests/test_release_grads.py::test_a_step_does_not_wait_for_the_device"
    }
    assert any("test_the_order_leaves_every_bit" in name for name in found)


def collected(part: str, *files: str) -> set[str]:
    """The tests that a part of those of the device has."""
    command = [sys.executable, "-m", "pytest", "--collect-only", *files]
    environment = os.environ | {"LIGO_FAST_TEST_PART": part}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return {line for line in done.stdout.splitlines() if "::" in line}


def test_rows_with_goals_have_their_time_before_the_sanitizer():
    """Whatever the stages before them take."""
    assert gpu.STAGES.index("rows") < gpu.STAGES.index("sanitizer") < gpu.STAGES.index("more")
    rows = sum(gpu.LIMITS[name.partition("-")[0]] for name in gpu.WITH_GOALS)
    assert gpu.LIMITS["build"] + gpu.LIMITS["tests"] + rows + gpu.LEAST["sanitizer"] <= gpu.SECONDS


def test_the_table_lists_the_rows_that_are_measured():
    rows = {name.partition("-")[0] for name in group("growth")}
    assert gpu.LIMITS.keys() >= gpu.LEAST.keys() == rows | {"learning", "sanitizer", "host", "select"}
    assert set(gpu.WITH_GOALS) <= group("growth").keys()
    assert group("tiny").keys() >= set(gpu.REHEARSED)
    assert gpu_table.LEARNING.keys() <= learning_memory.PAIRS.keys()


@pytest.mark.parametrize("name", ["bert", "gpt2", "tiny-bert", "tiny-gpt2", "100m-ligo", "llama-7b"])
def test_a_skeleton_has_the_parameters_of_the_model_it_stands_for(name):
    pair = CASES[name].pair
    with torch.device("meta"):
        model = real_model(CASES[name], pair.large)
    shapes = {
        n.removeprefix("bert.").removeprefix("transformer.").removeprefix("model."): p.shape
        for n, p in model.named_parameters()
    }
    assert shapes == pair.shapes(pair.large)


def test_the_pullback_is_timed_right_after_apply_and_once_from_the_factors_alone(monkeypatch):
    """Ours finds its arrays in the workspace, plain torch its grown weights."""
    op, launched, read = CASES["tiny-gpt2"].operator(CPU), [], []
    call, fresh = Launches.__call__, Execution._fresh
    bench = Bench(op, Stopwatch(CPU, cold=False), QUICK, ours="triton")
    random_gradients(op)
    monkeypatch.setattr(Launches, "__call__", lambda all, at: launched.append(len(all)) or call(all, at))
    monkeypatch.setattr(Execution, "_fresh", lambda kept: read.append(fresh(kept)) or read[-1])
    assert bench.measure("pullback")["status"] == "measured"
    _, first, *rest = launched  # after `apply_` a call for the gate, whose workspace is new
    assert len(set(rest)) == 1 and rest[0] < first and len(read) == 1 + len(rest) and all(read)
    launched.clear()
    with backend("triton"):
        alone = gpu_rows.from_the_factors_alone(op, lambda: None)
        alone()
        alone()
    assert launched == [first, first]


@pytest.mark.parametrize("name", gpu.REHEARSED)
def test_sequence_of_tiny_models_is_the_operator(name):
    """The baseline computes what the operator does, forward and backward."""
    op = CASES[name].operator(CPU)
    random_gradients(op)
    sequence = Sequence(op, torch.float32)
    sequence.forward()
    parameters = dict(op.large.named_parameters())
    with backend("torch"):
        op.apply_()
        op.pullback()
    assert sequence.grown.keys() == parameters.keys()
    for n, tensor in sequence.grown.items():
        torch.testing.assert_close(tensor, parameters[n].detach().view_as(tensor))
    sequence.backward({n: p.grad for n, p in parameters.items()})
    grads = sequence.gradients(op)
    assert grads["width"].keys() | grads["depth"].keys() == dict(op.named_parameters()).keys()
    for n, tensor in (grads["width"] | grads["depth"]).items():
        torch.testing.assert_close(op.get_parameter(n).grad, tensor, rtol=1e-4, atol=1e-5)


def test_gate_of_tiny_models_sees_a_wrong_parameter_and_a_wrong_gradient():
    op = CASES["tiny-gpt2"].operator(CPU)
    random_gradients(op)
    with backend("torch"):
        op.apply_()
        op.pullback()
    assert all(c["green"] for checks in gate.layer_by_layer(op).values() for c in checks.values())
    with torch.no_grad():
        op.large.get_parameter("h.1.mlp.c_fc.weight")[3, 5] += 1e-2
        next(op.parameters()).grad[0] *= 1.001
    for p in op.parameters():
        p.grad = p.grad.clone()
    checks = gate.layer_by_layer(op)
    assert not checks["apply"]["matrices"]["green"] and checks["apply"]["vectors"]["green"]
    assert not all(c["green"] for c in checks["pullback"].values())


def test_operands_are_rounded_to_the_nearest():
    x = torch.tensor([1 + 2**-10, 1 + 2**-10 + 2**-11, -1 - 2**-12, -torch.inf])
    assert rounding.rounded(x, "tf32").tolist() == [1 + 2**-10, 1 + 2**-9, -1, -torch.inf]
    assert rounding.rounded(torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32), "tf32").isnan()
    assert torch.equal(rounding.rounded(x, "bf16"), x.bfloat16().float())
    a, b = torch.randn(5, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    rounding.product("ieee")(a, b).sum().backward()
    torch.testing.assert_close(b.grad, a.detach().sum(0))


def test_a_wrong_kernel_case_is_noticed(monkeypatch):
    case = next(c for c in sanitize.cases() if c.name == "vector, unaligned")
    check = sanitize.Check(case)
    truth = check.expected(torch.float64, None)[:-1]
    monkeypatch.setattr(sanitize.Check, "measured", lambda self, device: [t.float() for t in truth])
    assert not check.faults(CPU)
    truth[1] = truth[1] * 1.001
    assert "gradients" in check.faults(CPU) and "outs" not in check.faults(CPU)


def test_kernel_cases_fail_without_csrc_where_it_has_to_be_there(monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "cases", lambda: iter(()))
    monkeypatch.setattr(sanitize, "why_not_select", lambda device: "not built")
    assert sanitize.main(["--rehearse"]) == 0
    assert sanitize.main(["--rehearse", "--with-csrc"]) == 1
    assert "csrc: not built" in capsys.readouterr().out


def test_the_cases_cover_every_dtype_precision_and_alignment():
    cases = list(sanitize.cases())
    assert len({c.name for c in cases}) == len(cases)
    assert {c.precision for c in cases} == {"ieee", "tf32", "bf16"}
    assert {c.source for c in cases} == {c.out for c in cases} == set(sanitize.DTYPES)
    shapes = {Matrix(0, 0, c.sizes[:2], (c.sizes[1], 1), torch.float32).aligned(1, 4) for c in cases}
    assert shapes == {True, False}
