"""The commands of ligo-fast: what they print, their exit codes, and that help comes without models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import models
import pytest
import torch
from typer.testing import CliRunner

import ligo_fast as lf
from ligo_fast.checkpoint import digests, grow_checkpoint, save_operator
from ligo_fast.cli import app

COMMANDS = ("grow", "certify", "inspect", "bench", "info", "demo")


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def small(tmp_path: Path) -> Path:
    models.build("llama-lm").save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def test_grow_writes_a_folder(small, tmp_path):
    code, out, _ = call(
        "grow", small, tmp_path / "out", "--width", 32, "--depth", 4, "--method", "net2net+stack"
    )
    assert code == 0 and "net2net+stack" in out and "3,376 -> " in out
    want = lf.grow(models.build("llama-lm"), width=32, depth=4, method="net2net+stack")
    got = type(want).from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(want.parameters(), got.parameters(), strict=True))


def test_grow_by_layers_as_json(small, tmp_path):
    code, out, _ = call("grow", small, tmp_path / "out", "--layers", "0-1,0-1", "--json", "--verify")
    record = json.loads(out)
    assert code == 0 and record["method"] == "random+0-1,0-1" and record["axes"]["layer"] == [2, 4]
    assert len(record["tensors_sha256"]) == 39


def test_grow_with_an_operator(small, tmp_path):
    model = type(models.build("llama-lm")).from_pretrained(small)
    op = lf.GrowthOperator(model, lf.grow(model, width=32, method="stack"), "ligo")
    with torch.no_grad():
        next(op.parameters()).mul_(0.9)
    save_operator(op, tmp_path / "op.safetensors")
    code, _, _ = call(
        "grow", small, tmp_path / "out", "--operator", tmp_path / "op.safetensors", "--shard-size", "9KB"
    )
    assert code == 0
    got = type(model).from_pretrained(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(op.apply_().parameters(), got.parameters(), strict=True))
    code, out, _ = call("certify", small, tmp_path / "out", "--operator", tmp_path / "op.safetensors")
    assert code == 3 and "rule" in out
    code, out, _ = call("certify", small, tmp_path / "out")
    assert code == 3 and "give the operator's file" in out
    with torch.no_grad():
        next(op.parameters()).mul_(0.9)
    save_operator(op, tmp_path / "other.safetensors")
    code, out, _ = call("certify", small, tmp_path / "out", "--operator", tmp_path / "other.safetensors")
    assert code == 3 and "other.safetensors is not the operator that was used" in out


@pytest.mark.parametrize(
    ("arguments", "fields", "hint"),
    [
        (["--width", "18"], {}, "intermediate_size in a target's config"),
        (["--width", "34"], {"intermediate_size": 16}, "num_attention_heads in a target's config"),
        (["--depth", "4"], {"model_type": "cobol"}, "checkpoint.grow_checkpoint"),
    ],
)
def test_hints_can_be_followed(small, tmp_path, arguments, fields, hint):
    file = small / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    code, _, err = call("grow", small, tmp_path / "out", *arguments)
    assert code == 2 and hint in err


def test_a_dry_run_writes_nothing(small, tmp_path):
    code, out, _ = call("grow", small, tmp_path / "out", "--depth", 4, "--dry-run", "--json")
    facts = json.loads(out)
    assert code == 0 and not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    grow_checkpoint(small, tmp_path / "out", depth=4)
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert facts["shards"] == {"model.safetensors": size} and facts["seconds"] >= 0
    code, out, _ = call("grow", small, tmp_path / "other", "--depth", 4, "--dry-run")
    said = " ".join(out.split())  # lines break where the console ends
    assert code == 0 and "nothing written" in said and "layer 2 -> 4" in said


def test_bad_input_is_one_line_and_code_2(small, tmp_path):
    for arguments in (
        ("grow", small, tmp_path / "out"),
        ("grow", small, tmp_path / "out", "--depth", "1"),
        ("grow", small, tmp_path / "out", "--depth", "4", "--shard-size", "many"),
        ("grow", small, tmp_path / "out", "--depth", "4", "--device", "cuda:9"),
        ("grow", tmp_path / "none", tmp_path / "out", "--depth", "4"),
        ("inspect", tmp_path),
        ("certify", small, tmp_path),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("ligo-fast: ") and err.count("\n") == 1
    code, out, _ = call("inspect", tmp_path, "--json")
    assert code == 2 and "config.json" in json.loads(out)["error"]
    assert call("grow", small)[0] == 2
    assert call("nonsense")[0] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_names_that_are_too_long(small, tmp_path):
    long, size = "n" * 300, ("--width", 32)
    for arguments in (
        ("grow", tmp_path / long, tmp_path / "out", *size),
        ("grow", small, tmp_path / long, *size),
        ("grow", small, tmp_path / long, *size, "--dry-run"),
        ("grow", small, tmp_path / long / "out", *size),
        ("grow", small, tmp_path / "out", "--target", tmp_path / long),
        ("grow", small, tmp_path / "out", "--operator", tmp_path / long),
        ("inspect", tmp_path / long),
        ("certify", small, tmp_path / long),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("ligo-fast: ") and err.count("\n") == 1 and long in err
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_overwrite(small, tmp_path):
    out = tmp_path / "out"
    assert call("grow", small, out, "--depth", 4)[0] == 0
    code, _, err = call("grow", small, out, "--depth", 6)
    assert code == 2 and "--overwrite" in err
    assert call("grow", small, out, "--depth", 6, "--overwrite")[0] == 0
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "small"]


def test_verify_finds_what_the_disk_changed(small, tmp_path, monkeypatch):
    real = digests.verify

    def spoiled(shards, folder, digests):
        with (folder / shards[0].name).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x55")
        real(shards, folder, digests)

    monkeypatch.setattr("ligo_fast.checkpoint.grow.verify", spoiled)
    code, _, err = call("grow", small, tmp_path / "out", "--depth", 4, "--verify")
    assert code == 3 and "what the disk returns" in err
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize("name", ["gpt2-lm", "bert-mlm", "vit-class"])
@pytest.mark.parametrize(("method", "kept"), [("tile", True), ("copy", False)])
def test_certify(name, method, kept, tmp_path):
    model = models.build(name)
    model.save_pretrained(tmp_path / "small")
    grow_checkpoint(tmp_path / "small", tmp_path / "out", width=16, method=method)
    code, out, _ = call("certify", tmp_path / "small", tmp_path / "out", "--tokens", 6, "--json")
    found = json.loads(out)
    assert (code, found["exact"]) == ((0, True) if kept else (3, False))
    assert found["notes"] == [] and found["axes"].keys() >= {"embed", "ffn"}
    code, out, _ = call("certify", tmp_path / "small", tmp_path / "out", "--tokens", 6)
    assert ("function kept" in out) == kept


def test_certify_knows_the_maps_of_float64_folders(tmp_path):
    """Both models are loaded in float32."""
    model = models.build("gpt2-lm", dtype=torch.float64)
    model.save_pretrained(tmp_path / "small")
    op = lf.GrowthOperator(model, lf.grow(model, width=24, depth=3, method="copy"), "net2net+ligo")
    save_operator(op, tmp_path / "op.safetensors")
    for how in ({"width": 24, "method": "net2net"}, {"operator": tmp_path / "op.safetensors"}):
        grow_checkpoint(tmp_path / "small", tmp_path / "out", overwrite=True, **how)
        operator = ["--operator", how["operator"]] if "operator" in how else []
        found = json.loads(call("certify", tmp_path / "small", tmp_path / "out", "--json", *operator)[1])
        assert found["notes"] == [] and found["rules"]


def test_inspect(small):
    code, out, _ = call("inspect", small, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["axes"]["kv_head"] == 2 and facts["widths"] == [24, 32]
    assert facts["parameters"] == 3376 and facts["dtype"] == "float32" and not facts["tied_head"]
    code, out, _ = call("inspect", small)
    assert code == 0 and "LlamaForCausalLM" in out


def test_inspect_finds_what_grow_finds(small, tmp_path):
    """A config that disagrees with the tensors."""
    file = small / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 32}))
    said = [call(*c) for c in (("inspect", small), ("grow", small, tmp_path / "out", "--depth", 4))]
    assert said[0] == said[1] and said[0][0] == 2 and "its config says 32" in said[0][2]


def test_help_has_examples_and_exit_codes():
    code, out, _ = call("--help")
    assert code == 0 and "Exit codes" in out and all(name in out for name in COMMANDS)
    for name in ("grow", "certify", "inspect"):
        code, out, _ = call(name, "--help")
        assert code == 0 and "Example" in out and f"ligo-fast {name}" in out


def test_grow_says_its_defaults():
    said = " ".join(call("grow", "--help")[1].replace("│", " ").split())
    assert "[default: (random+stack)]" in said and "[default: (0)]" in said


def test_noise_from_the_command_line(small, tmp_path):
    arguments = ("grow", small, tmp_path / "out", "--width", 32, "--method", "tile", "--noise", 0.5, "--json")
    code, out, _ = call(*arguments)
    assert code == 0 and json.loads(out)["noise"] == 0.5
    assert call("certify", small, tmp_path / "out")[0] == 0
    model = lf.grow(models.build("llama-lm"), width=32, method="tile")
    noisy = type(model).from_pretrained(tmp_path / "out")
    assert torch.equal(noisy.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert not torch.equal(noisy.lm_head.weight, model.lm_head.weight)


def test_info_as_json():
    code, out, _ = call("info", "--json")
    known = json.loads(out)
    assert code == 0 and known["backends"]["torch"] == "" and known["versions"]["torch"] == torch.__version__
    assert {"cpu", "cuda"} <= known.keys()


def test_demo_passes_its_settings_on(monkeypatch):
    seen = []
    monkeypatch.setattr("ligo_fast.demo.__main__.main", lambda arguments: seen.append(arguments))
    assert call("demo", "--quick", "--steps", "5")[0] == 0
    assert seen == [["--quick", "--steps", "5"]]


def test_growing_loads_neither_transformers_nor_the_compiler(small, tmp_path):
    code = (
        "import sys; from ligo_fast.cli import app\n"
        f"app(['grow', {str(small)!r}, {str(tmp_path / 'out')!r}, '--depth', '4'], standalone_mode=False)\n"
        "print([m for m in ('transformers', 'torch._dynamo', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_terminated_run_leaves_nothing(small, tmp_path):
    slow = (
        "import time, ligo_fast.checkpoint.stream as s, ligo_fast.cli as cli, sys\n"
        "s.BATCH_BYTES, grow = 1, s._grow\n"
        "def wait(*a):\n    grow(*a); print('begun', flush=True); time.sleep(9)\n"
        "s._grow = wait\n"
        f"sys.argv[1:] = ['grow', {str(small)!r}, {str(tmp_path / 'out')!r}, '--depth', '4']\n"
        "cli.run()"
    )
    child = subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None and child.stdout.readline() == b"begun\n"
    assert len(list(tmp_path.iterdir())) == 2
    start = time.monotonic()
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=8) == 128 + signal.SIGTERM and time.monotonic() - start < 8
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
