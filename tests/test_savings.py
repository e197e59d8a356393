"""The savings study: its tasks, one run of every family and recipe, and its command."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from test_savings_search import PRESET, TASK, finish, made_up

from benchmarks.report import markdown
from benchmarks.report import savings as report
from benchmarks.savings import __main__ as savings
from benchmarks.savings import growth
from benchmarks.savings.growth import slow_down_old, taught_by
from benchmarks.savings.presets import CPU, PRESETS, TINY, described
from benchmarks.savings.recipes import RECIPES
from benchmarks.savings.run import Setting, Until, run
from benchmarks.savings.search import key, next_jobs
from benchmarks.savings.tasks import SEARCH_SEED, Task, digits, read_corpus

CPU_DEVICE = torch.device("cpu")


@pytest.mark.parametrize("family", ["gpt2", "vit"])
def test_the_search_sees_no_validation_data_of_the_report(family):
    task = next(s.task for s in CPU.studies if s.task.family == family)
    (search,), *reported = (task.validation(seed, CPU_DEVICE) for seed in (SEARCH_SEED, 1, 2))
    name = "pixel_values" if family == "vit" else "input_ids"
    assert torch.equal(reported[0][0][name], reported[1][0][name])
    rows = [{row.numpy().tobytes() for row in batch[name]} for batch in (search, reported[0][0])]
    assert not rows[0] & rows[1]
    if family == "vit":
        train = {image.numpy().tobytes() for image in digits("training")[0]}
        assert not train & (rows[0] | rows[1]) and len(train) > 1200 and len(reported[0][0][name]) == 360


def test_a_teacher_computes_in_the_tasks_dtype():
    task = Task("t", "gpt2", replace(TINY, length=16, batch=2), autocast=True)
    small, large = (task.model(size, 0, CPU_DEVICE) for size in (False, True))
    seen = []
    for model in (small, large):
        model.lm_head.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    loss = taught_by(small, 0.5, task)(large, task.batches(0, 2, CPU_DEVICE)[0])
    loss.backward()
    assert seen == [torch.bfloat16] * 2 and loss.dtype == torch.float32


def test_an_operator_is_learned_once_for_a_seed(tmp_path, monkeypatch):
    config = replace(TINY, length=16, batch=4, steps=2, small_steps=2, evaluate_every=1, evaluate_batch=4)
    task, recipe = Task("gpt2", "gpt2", config), replace(RECIPES["ligo"], steps=2)
    calls, right = [], growth.learn
    monkeypatch.setattr(growth, "learn", lambda *a: calls.append(a[3]) or right(*a))
    first, second, other = (
        run(task, recipe, Setting(lr, 1, seed), tmp_path, CPU_DEVICE)
        for lr, seed in ((1e-3, 1), (2e-3, 1), (1e-3, 2))
    )
    assert calls == [1, 2]
    assert first["curve"][0] == second["curve"][0] and first["growth"] == second["growth"]
    assert first["curve"][-1] != second["curve"][-1] and other["curve"][0] != first["curve"][0]


def test_a_run_stops_where_it_is_told(tmp_path):
    config = replace(TINY, length=16, batch=4, steps=4, small_steps=1, evaluate_every=2, evaluate_batch=4)
    task = Task("gpt2", "gpt2", config)
    for limit, steps in ((None, [0, 2, 4]), (Until(100.0, 1e30), [0, 2]), (Until(0.0, 1.0), [0, 2])):
        found = run(task, RECIPES["scratch"], Setting(1e-3, 1, 0), tmp_path, CPU_DEVICE, limit)
        assert [p[0] for p in found["curve"]] == steps


def test_old_units_are_slowed(tmp_path):
    """In the first steps weights of the small model move a tenth as far as they would."""
    config = replace(TINY, length=16, batch=2)
    task = Task("llama", "llama", config)
    large = task.model(True, 0, CPU_DEVICE)
    before = [p.detach().clone() for p in large.parameters()]
    optimizer = torch.optim.SGD(large.parameters(), lr=1.0)
    slow_down_old(optimizer, task, 0, 1, CPU_DEVICE)
    for p in large.parameters():
        p.grad = torch.ones_like(p)
    for moved in ((0.1, 1.0), (1.0,)):
        optimizer.step()
        seen = set()
        for p, old in zip(large.parameters(), before, strict=True):
            seen |= {round(v, 3) for v in (old - p).detach().unique().tolist()}
            old.copy_(p.detach())
        assert seen == set(moved)


def test_presets_name_recipes_that_are():
    for preset in PRESETS.values():
        for study in preset.studies:
            assert "scratch" in study.recipes
            assert set(study.recipes) <= set(RECIPES)
            assert study.task.brief_steps or not any(RECIPES[r].brief for r in study.recipes)
            searched = [s.task.name for s in preset.studies if not s.like and s.at is None]
            assert study.like in ("", *searched)
    assert {s.task.family for s in CPU.studies} == {"gpt2", "llama", "bert", "vit"}


def test_no_validation_document_is_in_the_training_text(tmp_path, monkeypatch):
    """Packages lie inside the standard library's folder, and some files more than once."""
    packages = tmp_path / "lib" / "site-packages"
    for folder, numbers in (
        (tmp_path / "lib", range(20)),
        (packages / "one", range(10, 40)),
        (packages / "two", range(20, 60)),
        (packages / "two" / "tests", range(60, 70)),
        (tmp_path / "work", range(80, 90)),
    ):
        folder.mkdir(parents=True)
        for n in numbers:
            (folder / f"m{n}.py").write_text(f"x = {n}")
    paths = {"stdlib": str(tmp_path / "lib"), "purelib": str(packages), "platlib": str(packages)}
    monkeypatch.setattr("sysconfig.get_paths", lambda: paths)
    monkeypatch.syspath_prepend(tmp_path / "work")
    corpus = read_corpus.__wrapped__("installed")
    train, validation = (
        bytes(text.tolist()).decode().split("\n") for text in (corpus.train, corpus.validation)
    )
    assert len(validation) == 6 and not set(train) & set(validation)
    assert sorted(train + validation) == sorted(f"x = {n}" for n in range(60))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "vit"])
def test_every_family_runs_and_repeats(family, tmp_path):
    config = replace(
        TINY, length=16, batch=4, steps=2, small_steps=2, evaluate_every=1, evaluate_batch=4, warmup=1
    )
    task, setting = Task(family, family, config), Setting(1e-3, 1, 3)
    recipe = replace(RECIPES["ligo"], steps=2)
    first, again = (run(task, recipe, setting, tmp_path / n, CPU_DEVICE) for n in folders(tmp_path))
    losses = [[p[3] for p in r["curve"]] for r in (first, again)]
    assert losses[0] == losses[1]
    assert [p[0] for p in first["curve"]] == [0, 1, 2]
    assert first["growth"]["flops"] > 0 and first["small"]["flops"] > 0
    scratch = run(task, RECIPES["scratch"], setting, tmp_path, CPU_DEVICE)
    assert scratch["growth"]["flops"] == scratch["small"]["flops"] == 0
    assert scratch["curve"][0][3] != losses[0][0]


def folders(path):
    """Two empty folders for small models."""
    for name in ("a", "b"):
        (path / name).mkdir()
        yield name


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "scratch"])
def test_every_recipe_grows_llama(recipe, tmp_path):
    config = replace(
        TINY, length=16, batch=4, steps=1, small_steps=1, evaluate_every=1, evaluate_batch=2, warmup=1
    )
    task = Task("llama", "llama", config, brief_steps=1)
    short = replace(RECIPES[recipe], steps=1)
    result = run(task, short, Setting(1e-3, 1, 0), tmp_path, CPU_DEVICE)
    assert (result["growth"]["flops"] > 0) == ("ligo" in RECIPES[recipe].method)


def test_the_command_resumes(tmp_path, monkeypatch):
    """Runs that are in the JSON are not run again, and tables are made of it."""
    results = finish(PRESET, {"scratch": (4.0, 20, 3.0), "stack": (4.0, 20, 1.0)})
    missing = key("u", "stack", Setting(4.0, 20, 2))
    kept = {k: v for k, v in results.items() if k != missing}
    out = tmp_path / "savings_made_up.json"
    out.write_text(json.dumps({"runs": kept}))
    monkeypatch.setitem(PRESETS, "made_up", PRESET)
    asked = []

    class Pool:
        """Answers at once, with the runs that were made up."""

        def __init__(self, *args):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def submit(self, work, task, recipe, setting, folder, device, until):
            asked.append((task.name, setting))
            future = savings.Future()
            future.set_result(results[missing])
            return future

    monkeypatch.setattr(savings, "ProcessPoolExecutor", Pool)
    arguments = ["--preset", "made_up", "--out", str(out), "--folder", str(tmp_path / "small")]
    savings.main([*arguments, "--seconds", "0"])
    assert asked == [] and json.loads(out.read_text())["runs"] == kept
    savings.main(arguments)
    assert asked == [("u", Setting(4.0, 20, 2))]
    assert json.loads(out.read_text())["runs"] == results
    written = json.loads(out.read_text())
    assert written["tasks"].keys() == {"t", "u"} and written["recipes"].keys() == {"scratch", "stack"}
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    assert "50% (50% to 50%)" in report.overview("made_up")
    assert "+100%" in report.details("made_up", "t")
    assert report.curves("made_up").keys() == {"t", "u"}
    report.draw_curves("made_up")(tmp_path / "curves.png", "what it shows")
    assert b"what it shows" in (tmp_path / "curves.png").read_bytes()


def test_a_fresh_study_uses_nothing_of_an_earlier_one(tmp_path, monkeypatch):
    out, folder = tmp_path / "x.json", tmp_path / "small"
    folder.mkdir()
    out.write_text(json.dumps({"runs": finish(PRESET, {"scratch": (4.0, 20, 3.0), "stack": (4.0, 20, 1.0)})}))
    for name in ("t-0123-1.safetensors", "u-0123-1.json", "another"):
        (folder / name).write_text("{}")
    monkeypatch.setitem(PRESETS, "made_up", PRESET)
    arguments = ["--preset", "made_up", "--out", str(out), "--folder", str(folder), "--seconds", "0"]
    savings.main([*arguments, "--fresh"])
    assert not out.exists() and [f.name for f in folder.iterdir()] == ["another"]


def test_a_task_that_changed_is_not_resumed(tmp_path):
    results = finish(PRESET, {"scratch": (4.0, 20, 3.0), "stack": (4.0, 20, 1.0)})
    report, out = {"runs": results}, tmp_path / "x.json"
    savings.describe(report, PRESET, out)
    assert {k: report[k] for k in ("tasks", "recipes")} == described(PRESET)
    shorter = replace(TASK, config=replace(TINY, steps=7))
    changed = replace(PRESET, studies=(replace(PRESET.studies[0], task=shorter),))
    with pytest.raises(SystemExit, match="task 't' has changed"):
        savings.describe(report, changed, out)
    report["recipes"]["stack"]["noise"] = 1.0
    with pytest.raises(SystemExit, match="recipe 'stack' has changed"):
        savings.describe(report, PRESET, out)
    report["runs"] = {}
    savings.describe(report, changed, out)
    assert report["tasks"]["t"]["config"]["steps"] == 7 and report["recipes"]["stack"]["noise"] == 0


def test_tasks_and_recipes_that_are_asked_for(monkeypatch):
    monkeypatch.setitem(PRESETS, "made_up", PRESET)
    options = savings.options_from(["--preset", "made_up", "--recipes", "ligo; stack"])
    preset = savings.selected(options)
    assert [s.recipes for s in preset.studies] == [("scratch", "ligo", "stack")] * 2
    results: dict = {}
    while jobs := [j for j in next_jobs(PRESET, results) if savings.is_asked(j, PRESET, ["u"])]:
        results |= {key(*job): made_up(4.0, 20, 3.0, job[2]) for job in jobs}
    # of t only the search that u uses
    assert {(n.split(" / ")[0], n.split(" / ")[-1]) for n in results} == {("t", "0"), ("u", "1"), ("u", "2")}
    for option, kind in (("--tasks", "task"), ("--recipes", "recipe")):
        with pytest.raises(SystemExit, match=f"no {kind} 'x'; there are: "):
            savings.main(["--preset", "made_up", option, "x", "--folder", "build", "--out", "x.json"])


def test_workers_by_device():
    assert savings.options_from([]).workers == 2
    assert savings.options_from(["--device", "cuda"]).workers == 1
    assert savings.options_from(["--device", "cuda", "--workers", "3"]).workers == 3


def test_the_source_names_the_gpu_and_changed_files(tmp_path, monkeypatch):
    hardware = {"cpu": "some processor", "gpu": "NVIDIA X", "cuda": "13.0"}
    call = {"commit": "0123456789", "dirty": True, "command": "c", "hardware": hardware}
    calls = [call | {"versions": {"torch": "2"}}, call | {"dirty": False, "versions": {"torch": "2"}}]
    results = finish(PRESET, {"scratch": (4.0, 20, 3.0), "stack": (4.0, 20, 1.0)})
    content = {"calls": calls, "runs": results, **described(PRESET)}
    (tmp_path / "savings_made_up.json").write_text(json.dumps(content))
    monkeypatch.setitem(PRESETS, "made_up", PRESET)
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    source = report.overview("made_up").splitlines()[-1]
    assert source == "(NVIDIA X, CUDA 13.0, torch 2, commit 0123456 with changed files, `c`)"
    task = next(iter(content["tasks"].values()))
    task["config"]["steps"] += 1
    (tmp_path / "savings_made_up.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=f"tasks {task['name']} are not the preset's"):
        report.overview("made_up")
