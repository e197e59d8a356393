"""The kernels compile for sm_100, whose block shapes are those of sm_90: one of each kind, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

# compiling needs kernels that were not defined for the interpreter, hence a process of its own
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
CODE = """
import json
from ligo_fast.kernels.report import cases, compile_case
first = {}
for case in cases(100):
    first.setdefault((case.kernel.fn.__name__, case.wgmma, case.constants.get("PRECISION")), case)
rows = [(*kind, compile_case(case, 100), case) for kind, case in first.items()]
print(json.dumps([(*kind, row.instructions, row.faults(case)) for *kind, row, case in rows]))
"""


def test_every_kernel_compiles_for_blackwell() -> None:
    """No spills, shared memory within the limit, tensor cores in tf32 and bf16 products."""
    done = subprocess.run([sys.executable, "-c", CODE], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {kernel for kernel, *_ in rows} == {
        "product_kernel",
        "forward_kernel",
        "adjoint_kernel",
        "total_kernel",
    }
    assert [faults for *_, faults in rows if faults] == []
    products = [found for _, on_tensor_cores, _, found, _ in rows if on_tensor_cores]
    assert len(products) >= 2 and all("tcgen05" in found for found in products)
