"""What the compiler makes of every kernel in its default configuration, without a GPU.

`python -m ligo_fast.kernels.report [--json FILE] [--arch 80 90]` compiles ahead of time and prints
registers, spills, shared memory and the matrix instructions of each; it fails when one of them spills,
needs more shared memory than the architecture has, or does a product on sm_90 without wgmma; or copies the
aligned operands of a tf32 or bf16 product 4 bytes at a time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .blend import BlendKind, adjoint_options, forward_kernel, forward_options
from .blend_adjoint import adjoint_kernel
from .configs import BLEND, PRODUCT, THIN_PRODUCT, UNALIGNED, UNALIGNED_WARPS, BlendConfig
from .expand import product_kernel
from .total import OPTIONS, total_kernel

SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes a block may ask for
F32, BF16, F16 = tl.float32, tl.bfloat16, tl.float16


@dataclass(frozen=True)
class Case:
    """One kernel with everything the compiler is told."""

    kernel: Any
    constants: dict[str, Any]
    warps: int
    stages: int = 3
    registers: int | None = None  # the most it may use
    wgmma: bool = False  # whether sm_90 must use it, and copy more than 4 bytes at a time where aligned


@dataclass
class Row:
    """What became of a case on one architecture."""

    kernel: str
    arch: int
    options: str
    registers: int
    spills: int
    shared: int
    copies: list[int]  # widths in bytes of asynchronous copies to shared memory
    instructions: str

    def faults(self, case: Case) -> list[str]:
        found = []
        if self.spills:
            found.append(f"{self.spills} bytes of spills")
        if self.shared > SHARED_LIMIT[self.arch]:
            found.append(f"{self.shared} bytes of shared memory, the limit is {SHARED_LIMIT[self.arch]}")
        if self.arch == 90 and case.wgmma and "wgmma" not in self.instructions:
            found.append("no wgmma")
        if (
            case.wgmma and case.constants["ALIGN"] > 1 and min(self.copies, default=0) < 8
        ):  # 8: halves for tf32
            found.append(f"copies of {min(self.copies, default=0)} bytes")
        return found


def cases(arch: int) -> Iterator[Case]:
    """Every kernel and default configuration of an architecture; sm_100 uses sm_90's table."""
    table = max(c for c in BLEND if c <= arch)
    operands = {
        "thin": [
            (F32, F32, F32), (F32, BF16, F32), (F32, BF16, BF16), (BF16, F32, BF16), (BF16, BF16, F32),
        ],
        "ieee": [(F32, F32, F32), (F32, BF16, F32), (BF16, F32, BF16), (BF16, BF16, F32)],
        "tf32": [
            (F32, F32, F32), (F32, F16, F32), (F16, F32, F32),
            (F32, F16, F16), (F16, F32, F16), (F16, F16, F32),
        ],
        "bf16": [
            (BF16, BF16, BF16), (BF16, BF16, F32), (F32, BF16, BF16), (BF16, F32, BF16), (F32, BF16, F32),
            (BF16, F32, F32), (F32, F32, F32),
        ],
    }  # fmt: skip
    for precision, types in operands.items():
        for (a, b, out), along_k, along_n in itertools.product(types, (True, False), (True, False)):
            align = 4 if (a, b, out) == (F32, F32, F32) else 8
            configs = [(THIN_PRODUCT if precision == "thin" else PRODUCT[table, precision], align)]
            if (a, b, out) in types[:2] and along_k and along_n:
                configs.append((UNALIGNED, 1))
            for config, n in configs:
                constants = {
                    "A_TYPE": a, "B_TYPE": b, "OUT_TYPE": out, "A_ALONG_K": along_k, "B_ALONG_N": along_n,
                    "ALIGN": n, "OPERAND": BF16 if precision == "bf16" else F32,
                    "PRECISION": "tf32" if precision == "tf32" else "ieee",
                    "BM": config.m, "BN": config.n, "BK": config.k,
                }  # fmt: skip
                wgmma = precision in ("tf32", "bf16")
                yield Case(product_kernel, constants, config.warps, config.stages, wgmma=wgmma)
    yield from blend_cases(BLEND[table])
    yield _case(total_kernel, OPTIONS)


def blend_cases(config: BlendConfig) -> Iterator[Case]:
    """Blends of like and of mixed dtypes; adjoints of few and many layers, plain and with everything."""
    f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
    for x, y in ((f32, f32), (bf16, bf16), (f32, f16), (f16, f32)):
        for along, align in ((True, 4 if x == y == f32 else 8), (True, 1), (False, 1)):
            kind = BlendKind(x, y, f32, along, align)
            yield _case(forward_kernel, forward_options(kind, config))
            if align == 1:  # never on tensor cores
                few = config._replace(adjoint_warps=UNALIGNED_WARPS)
                for full in (False, True):
                    yield _case(adjoint_kernel, adjoint_options(kind, few, "ieee", (32, 22), full, full))
                continue
            if y == bf16:  # where only bfloat16 products read dx
                options = adjoint_options(kind._replace(dx=bf16), config, "bf16", (24, 12), False, False)
                yield _case(adjoint_kernel, options)
            for precision, full in itertools.product(("ieee", "tf32"), (False, True)):
                for layers in ((12, 6), (24, 12), (32, 22)) if x == y else ((32, 22),):
                    options = adjoint_options(kind, config, precision, layers, full, full)
                    yield _case(adjoint_kernel, options)


def _case(kernel: Any, options: dict[str, Any]) -> Case:
    constants = {k: v for k, v in options.items() if k.isupper()}
    return Case(kernel, constants, options["num_warps"], registers=options.get("maxnreg"))


def compile_case(case: Case, arch: int) -> Row:
    """Compile as a launch would: tables start on 16 bytes."""
    names = case.kernel.arg_names
    tables = [n for n in names if n not in case.constants]
    types = {"work": "*i32"}
    signature = {n: types.get(n, "*i64") if n in tables else "constexpr" for n in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in tables}
    constants = {(names.index(n),): v for n, v in case.constants.items()}
    source = ASTSource(case.kernel, signature, constants, attributes)
    options = {"num_warps": case.warps, "num_stages": case.stages, "maxnreg": case.registers}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    registers, spills = _assemble(ptx, arch)
    names = ("wgmma", "tcgen05", "mma.sync", "cp.async.cg", "cp.async.ca", "ld.global.v4")
    found = [name for name in names if name in ptx]
    shown = ", ".join(f"{k}={getattr(v, 'name', v)}" for k, v in case.constants.items())
    name = case.kernel.fn.__name__
    copies = sorted({int(n, 16) for n in re.findall(r"cp\.async\.c[ag]\.shared\.global .*?, 0x(\w+)", ptx)})
    return Row(name, arch, shown, registers, spills, compiled.metadata.shared, copies, " ".join(found))


def _assemble(ptx: str, arch: int) -> tuple[int, int]:
    """Registers and bytes of spills, from the ptxas that Triton brings."""
    suffix = "a" if arch >= 90 else ""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as f:
        f.write(ptx)
        f.flush()
        tool = triton.knobs.nvidia.ptxas_blackwell if arch >= 100 else triton.knobs.nvidia.ptxas
        command = [tool.path, "-v", f"-arch=sm_{arch}{suffix}", f.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill stores", said)]
    return max(registers), max(spills)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], choices=sorted(SHARED_LIMIT))
    parser.add_argument("--json", help="write the rows there")
    options = parser.parse_args(arguments)
    rows, faults = [], []
    for arch in options.arch:
        for case in cases(arch):
            row = compile_case(case, arch)
            rows.append(row)
            wrong = row.faults(case)
            faults += [f"sm_{arch} {row.kernel} {row.options}: {w}" for w in wrong]
            print(
                f"sm_{arch} {row.kernel:15} {row.registers:4} registers {row.spills:4} spilled "
                f"{row.shared:7} shared  {row.instructions:28} {row.options} {'; '.join(wrong)}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w") as f:
            json.dump({"triton": triton.__version__, "rows": [asdict(r) for r in rows]}, f, indent=1)
            f.write("\n")
    print(f"{len(rows)} compiled with triton {triton.__version__}, {len(faults)} faults")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
