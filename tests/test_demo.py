"""The demo: data that repeats, costs that add up, and one tiny run from text to table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ligo_fast.cli import app
from ligo_fast.demo.__main__ import main
from ligo_fast.demo.config import Config
from ligo_fast.demo.cost import Cost, crossing, saved, training_flops
from ligo_fast.demo.data import Batches, load_corpus, split
from ligo_fast.demo.report import Run, compare
from ligo_fast.demo.train import Point, build_gpt2, rate

CPU = torch.device("cpu")
MICRO = [
    "--small-width=16",
    "--small-depth=1",
    "--width=32",
    "--depth=2",
    "--head-dim=8",
    "--length=16",
    "--batch=2",
    "--small-steps=4",
    "--steps=4",
    "--warmup=1",
    "--grown-warmup=1",
    "--evaluate-every=2",
    "--evaluate-batch=2",
    "--learn-steps=2",
    "--learn-warmup=1",
    "--learn-batch=1",
]


def as_text(tokens: torch.Tensor) -> bytes:
    return bytes(tokens.tolist())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty short files, one that is not text and one in a hidden folder."""
    folder = tmp_path / "texts"
    (folder / ".hidden").mkdir(parents=True)
    for i in range(20):
        (folder / f"{i}.py").write_text(f"<{i}>" * 40)
    (folder / "image.bin").write_bytes(b"\0\xff")
    (folder / ".hidden" / "secret.py").write_text("secret" * 40)
    return folder


def test_every_file_is_in_one_split(folder: Path) -> None:
    corpus = load_corpus(folder)
    train, validation = as_text(corpus.train), as_text(corpus.validation)
    in_train = [f"<{i}>".encode() in train for i in range(20)]
    in_validation = [f"<{i}>".encode() in validation for i in range(20)]
    assert sum(in_validation) == 2
    assert [not x for x in in_train] == in_validation
    assert b"secret" not in train + validation and b"\0" not in train + validation


def test_split_does_not_depend_on_file_order() -> None:
    documents = {f"{i}.txt": bytes([65 + i]) * 5 for i in range(12)}
    assert split(documents) == split(dict(reversed(documents.items())))


def test_one_file_is_cut_in_two(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(100)))
    corpus = load_corpus(path)
    assert as_text(corpus.train) == bytes(range(90))
    assert as_text(corpus.validation) == bytes(range(90, 100))


def test_batches_repeat_and_depend_on_step_and_seed() -> None:
    text = torch.arange(5000).remainder(251).to(torch.uint8)
    batches = Batches(text, 4, 32, 0, CPU)
    again = Batches(text.clone(), 4, 32, 0, CPU)
    torch.rand(3)
    assert torch.equal(batches[7]["input_ids"], again[7]["input_ids"])
    assert torch.equal(batches[7]["input_ids"], batches[7]["labels"])
    assert not torch.equal(batches[7]["input_ids"], batches[8]["input_ids"])
    assert not torch.equal(batches[7]["input_ids"], Batches(text, 4, 32, 1, CPU)[7]["input_ids"])


def test_short_text_is_refused() -> None:
    with pytest.raises(ValueError, match="10 bytes"):
        Batches(torch.zeros(10, dtype=torch.uint8), 1, 32, 0, CPU)


def test_crossing_interpolates() -> None:
    x, loss = [0.0, 10.0, 20.0, 30.0], [5.0, 4.0, 2.0, 2.5]
    assert crossing(x, loss, 3.0) == pytest.approx(15.0)
    assert crossing(x, loss, 2.0) == pytest.approx(20.0)
    assert crossing(x, loss, 6.0) == 0.0
    assert crossing(x, loss, 1.0) is None


def test_saved_share() -> None:
    assert saved(55.0, 100.0) == pytest.approx(0.45)
    assert saved(120.0, 100.0) == pytest.approx(-0.2)
    assert saved(None, 100.0) is None


def test_costs_of_a_comparison() -> None:
    """Scratch ends at loss 2 after 100 FLOPs; the other crosses it half way through its second stretch."""
    scratch = [Point(0, Cost(0, 0), 5.0), Point(1, Cost(50, 5), 3.0), Point(2, Cost(100, 10), 2.0)]
    grown = [Point(0, Cost(0, 0), 3.0), Point(1, Cost(50, 5), 2.25), Point(2, Cost(100, 10), 1.75)]
    runs = [
        Run("scratch", Cost(), [], scratch, uses_small=False),
        Run("grown", Cost(5, 1), [], grown, uses_small=True),
        Run("poor", Cost(), [], scratch[:2], uses_small=True),
    ]
    first, second, third = compare(runs, small=Cost(10, 2))
    assert (first.flops, first.seconds, first.saved, first.saved_small_free) == (100, 10, 0, 0)
    assert second.flops == pytest.approx(10 + 5 + 75)
    assert second.seconds == pytest.approx(2 + 1 + 7.5)
    assert second.saved == pytest.approx(0.10)
    assert second.saved_small_free == pytest.approx(0.20)
    assert (third.flops, third.seconds, third.saved, third.saved_small_free) == (None, None, None, None)


def test_flops_are_those_of_the_products() -> None:
    """Six FLOPs a weight and token, and attention; the input has no gradient to pass to."""
    config = Config(head_dim=8, length=16)
    model = build_gpt2(16, 2, config, CPU)
    batch = Batches(torch.zeros(100, dtype=torch.uint8), 3, 16, 0, CPU)[0]
    weights = 2 * 12 * 16 * 16 + 256 * 16
    attention = 2 * 2 * 16 * 16
    assert training_flops(model, batch) == 3 * 16 * 6 * weights + 3 * 6 * attention * 16
    assert all(p.grad is None for p in model.parameters())


def test_rate_warms_up_and_decays() -> None:
    shares = [rate(step, steps=12, warmup=2, final=0.1) for step in range(13)]
    assert shares[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert shares[7] == pytest.approx(0.55)
    assert shares[12] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--methods=nonsense", ["nonsense"]),
        ("--data=nowhere", ["nowhere", "No such file"]),
        ("--data=empty.txt", ["empty.txt", "no text"]),
        ("--data=empty", ["empty", "no text"]),
        ("--data=short.txt", ["short.txt", "1 bytes", "16"]),
        ("--out=short.txt", ["short.txt", "File exists"]),
        ("--out=short.txt/below", ["short.txt", "Not a directory"]),
        ("--steps=0", ["--steps", "0"]),
        ("--evaluate-every=0", ["--evaluate-every", "0"]),
        ("--lr=nan", ["--lr", "nan"]),
        ("--learn-warmup=-1", ["--learn-warmup", "-1"]),
        ("--width=8", ["--width", "8", "16"]),
        ("--width=36", ["--width", "36", "8"]),
        ("--steps=many", ["--steps", "many"]),
        ("--nonsense", ["--nonsense"]),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(
    argument: str, words: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "short.txt").write_text("ten bytes.")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ligo_fast.demo.experiment.train", lambda *a, **k: pytest.fail("it trains"))
    done = CliRunner().invoke(app, ["demo", f"--data={folder}", *MICRO, argument])
    assert isinstance(done.exception, SystemExit) and done.exit_code == 2
    assert done.stderr.startswith("ligo-fast: ") and done.stderr.count("\n") == 1
    assert [w for w in words if w not in done.stderr] == [], done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_help_has_examples() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ligo_fast.demo", "--help"], capture_output=True, text=True, check=True
    )
    assert "ligo-fast demo --quick" in done.stdout and "--json" in done.stdout


def test_tiny_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    rows = main([f"--data={folder}", f"--out={out}", "--methods=stack,net2net+stack,ligo", *MICRO])
    names = ["scratch", "stack", "net2net+stack", "ligo"]
    assert [row.method for row in rows] == names
    assert rows[0].saved is not None and rows[0].saved >= 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)

    results = json.loads((out / "results.json").read_text())
    assert results["config"]["width"] == 32
    assert results["environment"]["torch"] == torch.__version__
    assert [run["method"] for run in results["runs"]] == names
    assert [point["step"] for point in results["runs"][0]["curve"]] == [0, 2, 4]
    ligo = results["runs"][-1]
    assert len(ligo["losses"]) == 2 and ligo["growth"]["flops"] > 0
    for name in ("curves.png", "maps.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_method_that_does_not_fit_is_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = main([f"--data={folder}", f"--out={tmp_path}", "--methods=tile+stack", *MICRO, "--width=24"])
    assert [row.method for row in rows] == ["scratch"]
    assert "tile+stack left out" in capsys.readouterr().out


def test_one_json_object(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["demo", f"--data={folder}", f"--out={tmp_path / 'out'}", *MICRO, "--json"]
    )
    assert done.exit_code == 0 and "saved" in done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "results.json").read_text())
