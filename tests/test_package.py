"""What `import ligo_fast` loads, and what it offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ligo_fast as lf

PACKAGE = Path(lf.__file__).parent


def loaded_by(code: str, *names: str) -> list[str]:
    """Which of these modules a process has loaded that ran this code."""
    asked = f"{code}\nimport sys; print([n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    return eval(done.stdout.splitlines()[-1])


def help_of(*command: str) -> str:
    return f"from ligo_fast.cli import app; app({[*command, '--help']!r}, standalone_mode=False)"


@pytest.mark.parametrize(
    "code",
    ["import ligo_fast as lf; lf.GrowthError, lf.__version__, dir(lf)", help_of(), help_of("grow")],
    ids=["import", "help", "grow --help"],
)
def test_torch_is_not_loaded_before_it_is_needed(code):
    assert loaded_by(code, "torch", "numpy") == []


def test_the_public_names_are_there_whatever_was_imported_first():
    code = (
        "import ligo_fast.checkpoint, ligo_fast.growing\n"
        "import ligo_fast.training.learning, ligo_fast.exact.certificate\n"
        "from ligo_fast import *\nimport ligo_fast as lf\n"
        "assert all(globals()[n] is getattr(lf, n) for n in lf.__all__)\n"
        "assert callable(lf.grow) and callable(lf.learn) and callable(lf.certify)"
    )
    assert loaded_by(code, "transformers", "torch") == ["torch"]


def test_no_module_is_named_like_a_function():
    """Importing it would put it in the function's place."""
    modules = {p.stem for p in PACKAGE.glob("*.py")} | {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    assert not {n for n in lf.__all__ if n in modules and not hasattr(getattr(lf, n), "__file__")}


def test_every_public_name_is_listed_and_no_other_is_there():
    assert set(lf.__all__) <= set(dir(lf)) and lf.__all__ == sorted(
        lf.__all__, key=lambda n: (n.lower() == n, n)
    )
    with pytest.raises(AttributeError, match="has no attribute 'shrink'"):
        lf.shrink  # noqa: B018


def test_a_command_loads_torch_with_threads_that_sleep():
    """And leaves the collector on; what a user has set stays."""
    code = (
        "import gc, os; os.environ['OPENBLAS_NUM_THREADS'] = '3'\n"
        "from ligo_fast.startup import load_torch; load_torch()\n"
        "assert gc.isenabled() and os.environ['OPENBLAS_NUM_THREADS'] == '3'\n"
        "from ligo_fast.checkpoint.grow import room_for_others\n"
        "import torch; torch.set_num_threads(2)\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'passive'\n"
        "for policy, threads in (('passive', 2), ('active', 1)):\n"
        "    os.environ['OMP_WAIT_POLICY'] = policy\n"
        "    with room_for_others():\n"
        "        assert torch.get_num_threads() == threads\n"
        "    assert torch.get_num_threads() == 2\n"
    )
    assert loaded_by(code, "torch") == ["torch"]
