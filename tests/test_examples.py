"""Every example runs, on a file of Python's own source code, and learns."""

import argparse
import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples"
TEXT = Path(argparse.__file__)
OPTIONS = {
    "accelerate_loop": {"learn": 4, "steps": 6},
    "compiled": {"learn": 6, "backend": "eager"},
    "hf_trainer": {"learn": 4, "steps": 6},
    "lightning_loop": {"learn": 4, "steps": 6},
    "plain_amp_loop": {"learn": 4, "steps": 2},
}


def test_every_example_is_tried_and_short():
    files = list(FOLDER.glob("*.py"))
    assert {f.stem for f in files} == OPTIONS.keys()
    assert all(len(f.read_text().splitlines()) < 60 for f in files)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_example_runs(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name])
    torch.manual_seed(0)
    spec = importlib.util.spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = module.main(small_steps=4, text=TEXT, **OPTIONS[name])
    losses = [r["loss"] for r in result if "loss" in r] if name == "hf_trainer" else result
    assert len(losses) >= 3 and losses[-1] < losses[0]
    assert max(losses) < math.log(256) - 0.3  # where a model that knows nothing of these bytes begins
    assert "loss" in capsys.readouterr().out
