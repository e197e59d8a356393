"""What the compiler makes of the kernels for real GPUs, ahead of time: no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# compiling needs kernels that were not defined for the interpreter, hence a process of its own
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


@pytest.mark.parametrize("arch", [80, 90])
def test_every_default_configuration_compiles_well(arch: int, tmp_path: Path) -> None:
    """No spills, shared memory within the limit; wgmma and wide copies in every tf32 and bf16 product."""
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "ligo_fast.kernels.report", "--arch", str(arch), "--json", str(out)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {r["kernel"] for r in rows} == {
        "product_kernel",
        "forward_kernel",
        "adjoint_kernel",
        "total_kernel",
    }
    products = [r for r in rows if "OPERAND=bf16" in r["options"] or "PRECISION=tf32, BM" in r["options"]]
    assert all(("wgmma" if arch == 90 else "mma.sync") in r["instructions"] for r in products)
    whole = [r for r in products if "ALIGN=1" not in r["options"]]
    assert {tuple(r["copies"]) for r in whole if "A_TYPE=fp16" not in r["options"]} == {(16,)}
    assert any("tf32" in r["options"] for r in whole) and any("OPERAND=bf16" in r["options"] for r in whole)
    halves = "X_TYPE=fp16, Y_TYPE=fp32"  # 8 bytes of x, as many numbers as 16 of y
    for r in rows:
        if r["kernel"] in ("forward_kernel", "adjoint_kernel") and "ALIGN=1," not in r["options"]:
            wide = "cp.async.cg" if "STAGES=3" in r["options"] else "ld.global.v4"
            assert wide in r["instructions"] or halves in r["options"]


def test_the_checks_can_fail() -> None:
    """A tile far too large spills and asks for too much shared memory; float32 products have no wgmma;
    what is not known to be aligned is copied number by number.
    """
    code = """
import dataclasses
from ligo_fast.kernels.report import cases, compile_case
case = next(c for c in cases(90) if c.wgmma)
bad = dataclasses.replace(case, constants={**case.constants, "BM": 128, "BN": 256, "BK": 64}, warps=4)
print(compile_case(bad, 90).faults(bad))
plain = dataclasses.replace(next(iter(cases(90))), wgmma=True)
print(compile_case(plain, 90).faults(plain))
loose = dataclasses.replace(case, constants={**case.constants, "ALIGN": 1, "BM": 64})
print(dataclasses.replace(compile_case(loose, 90), spills=0).faults(case))
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    large, plain, loose = done.stdout.splitlines()
    assert "spills" in large
    assert "shared memory" in large
    assert plain == "['no wgmma']"
    assert loose == "['copies of 4 bytes']"
