"""Everything there is to check on a GPU, in one command and ten minutes: `python -m benchmarks.gpu`.

csrc/cuda is built in place where pybind11 is; tests on the device, compute-sanitizer over small plans, then
benchmarks. Every stage is a process of its own with a limit on its time; one that fails is recorded and the
next runs. Exit status: 0 when all went well, 1 when a stage failed or ran out of time, 2 without a GPU.
`--rehearse` runs the same code on tiny models on a CPU, under Triton's interpreter: it measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from benchmarks import gpu_table
from benchmarks.jobs import Job, run_together
from benchmarks.measure import hardware, provenance, versions
from ligo_fast.bench.cases import group

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
TESTS = {  # file -> modules it needs beside torch and pytest
    "tests/test_kernels.py": (),
    "tests/test_operator.py": ("transformers",),
    "tests/test_optimizer.py": ("transformers",),
    "tests/test_ops.py": ("hypothesis",),
}
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# seconds; the rows share what is left
LIMITS = {"build": 90, "tests": 130, "cases": 110, "sanitizer": 110, "select": 70, "bert": 75, "gpt2": 85,
          "llama": 110, "tiny": 110, "learning": 80}  # fmt: skip
LEAST = {"bert": 25, "gpt2": 30, "llama": 40, "learning": 45}  # a row is not begun with less
REHEARSED = ("tiny-gpt2", "tiny-llama")


class Check:
    """One run: its options, its report, and the time that is left."""

    def __init__(self, options: argparse.Namespace, arguments: Sequence[str]) -> None:
        self.rehearsal, self.out = options.rehearse, options.out
        self.deadline = monotonic() + options.seconds
        self.interpreter = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if self.rehearsal else {}
        self.report: dict[str, Any] = {"rehearsal": self.rehearsal}
        self.report |= provenance(arguments, "benchmarks.gpu")
        self.report |= {"hardware": hardware() | gpu_facts(), "stages": [], "rows": {}}
        self.report["versions"] = versions() | {"cuda": torch.version.cuda}

    def left(self) -> float:
        return self.deadline - monotonic()

    def write(self) -> None:
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(self.report, indent=1) + "\n")

    def add(self, *results: dict[str, Any]) -> None:
        self.report["stages"] += results
        self.write()

    def python(self, name: str, limit: float, *arguments: str, **environment: str) -> Job:
        rehearse = ["--rehearse"] if self.rehearsal and arguments[0].startswith("benchmarks.") else []
        command = [sys.executable, "-m", *arguments, *rehearse]
        return Job(name, command, limit, self.interpreter | environment)

    def missing(self, name: str, reason: str) -> None:
        print(f"{name}: {reason}", flush=True)
        self.add({"stage": name, "status": "missing", "seconds": 0.0, "tail": [reason]})

    def build(self) -> None:
        """csrc/cuda for this GPU, in this folder, unless it is there or cannot be."""
        if self.rehearsal:
            return self.missing("build", "not in a rehearsal")
        if importlib.util.find_spec("ligo_fast._cuda") is not None:
            return self.missing("build", "there already")
        if importlib.util.find_spec("pybind11") is None:
            return self.missing("build", "needs pybind11, which is not installed")
        major, minor = torch.cuda.get_device_capability()
        wanted = {"LIGO_FAST_FORCE_CUDA": "1", "LIGO_FAST_ARCHITECTURES": f"{major}{minor}"}
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        self.add(*run_together([Job("build", command, LIMITS["build"], wanted)], self.deadline))

    def tests(self) -> None:
        """pytest on the device; files whose needs are not installed are named and left out."""
        files, device = [], "cpu" if self.rehearsal else "cuda"
        for file, needs in TESTS.items():
            lacking = [m for m in (*needs, "pytest") if importlib.util.find_spec(m) is None]
            if lacking:
                self.missing(f"tests: {file}", f"needs {', '.join(lacking)}, which is not installed")
            elif not (ROOT / file).exists():
                self.missing(f"tests: {file}", "there is no such file")
            else:
                files.append(file)
        if self.rehearsal:
            files = ["tests/test_gpu_check.py", "-k", "tiny_models"]
        if files:
            options = ["pytest", "-q", "-p", "no:cacheprovider", *files]
            job = self.python("tests", LIMITS["tests"], *options, LIGO_FAST_TEST_DEVICE=device)
            self.add(*run_together([job], self.deadline))

    def sanitizer(self) -> None:
        """The cases alone, which compiles their kernels; then under each tool of compute-sanitizer."""
        parts = 1 if self.rehearsal else 4  # compiling takes a core each
        plain = [
            self.python(
                f"kernel cases {n}/{parts}", LIMITS["cases"], "benchmarks.sanitize", f"--part={n}/{parts}"
            )
            for n in range(1, parts + 1)
        ]
        self.add(*run_together(plain, self.deadline))
        if self.rehearsal:
            self.missing("compute-sanitizer", "not in a rehearsal")
        elif (tool := find_sanitizer()) is None:
            self.missing("compute-sanitizer", "not on PATH, under CUDA_HOME or in /usr/local/cuda")
        else:
            self.add(*run_together([self._sanitized(tool, name) for name in TOOLS], self.deadline))

    def _sanitized(self, sanitizer: str, tool: str) -> Job:
        job = self.python(tool, LIMITS["sanitizer"], "benchmarks.sanitize")
        options = ["--tool", tool, "--error-exitcode", "9", "--target-processes", "application-only"]
        # torch would hand out memory that was written before: reading it would not be noticed
        return Job(
            f"compute-sanitizer {tool}", [sanitizer, *options, *job.command], job.limit,
            job.environment | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )  # fmt: skip

    def benchmarks(self) -> None:
        """Row by row, each in its own process: an error on the device ends only its own."""
        self.report["select"] = self._row("select", "select", "benchmarks.gpu_select")
        for row in REHEARSED if self.rehearsal else group("growth"):
            name = row.partition("-")[0]
            if not self.rehearsal and self.left() < LEAST[name]:
                reason = f"{max(self.left(), 0):.0f} s were left"
                self.report["rows"][row] = {"status": "skipped", "reason": reason}
                self.add({"stage": row, "status": "skipped", "seconds": 0.0, "tail": [reason]})
                continue
            arguments = ("benchmarks.gpu_rows", row)
            self.report["rows"][row] = self._row(row, name, *arguments, LIGO_FAST_BACKEND="triton")
        self.learning()

    def learning(self) -> None:
        """Learning with released gradients: its peak memory and the time of a step."""
        name = "tiny" if self.rehearsal else next(iter(gpu_table.LEARNING))
        row = f"learning {name}"
        if not self.rehearsal and self.left() < LEAST["learning"]:
            reason = f"{max(self.left(), 0):.0f} s were left"
            self.report["rows"][row] = {"status": "skipped", "reason": reason}
            self.add({"stage": row, "status": "skipped", "seconds": 0.0, "tail": [reason]})
            return
        if importlib.util.find_spec("transformers") is None:
            self.report["rows"][row] = {"status": "skipped", "reason": "transformers is not installed"}
            self.missing(row, "needs transformers, which is not installed")
            return
        arguments = ("benchmarks.learning_memory", "--pair", name, "--row")
        self.report["rows"][row] = {"learning": self._row(row, "learning", *arguments)}

    def _row(self, row: str, name: str, *arguments: str, **environment: str) -> dict[str, Any]:
        """What a module writes; and why it ended early, if it did."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "row.json"
            job = self.python(row, LIMITS[name], *arguments, "--out", str(out), **environment)
            (result,) = run_together([job], self.deadline)
            found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
        self.add(result)
        reason = {"status": result["status"], "reason": " ".join(result["tail"][-1:])[:300]}
        return reason | found if result["status"] != "passed" else found

    def show(self) -> None:
        """The tables and the verdict; a rehearsal's rows are other models, so it has none."""
        if not self.rehearsal:
            print_table(gpu_table.GROWTH_HEADER, gpu_table.growth_rows(self.report))
            print_table(gpu_table.SELECT_HEADER, gpu_table.select_rows(self.report))
            print_table(gpu_table.STEP_HEADER, gpu_table.step_rows(self.report))
            print_table(gpu_table.LEARNING_HEADER, gpu_table.learning_rows(self.report))
        for stage in self.report["stages"]:
            print(f"{stage['stage']}: {stage['status']}, {stage['seconds']} s")
        if self.rehearsal:
            print("a rehearsal: nothing was measured")
        if self.out is not None:
            print(f"written to {self.out}")

    @property
    def status(self) -> int:
        return int(any(stage["status"] in ("failed", "timed out") for stage in self.report["stages"]))


def gpu_facts() -> dict[str, Any]:
    """Name, driver, clocks and memory as nvidia-smi tells, and what torch knows; empty without a GPU."""
    if not torch.cuda.is_available():
        return {"gpu": None, "driver": None}
    p = torch.cuda.get_device_properties(0)
    facts = {"gpu": p.name, "driver": None, "sm": p.multi_processor_count, "memory_bytes": p.total_memory}
    facts |= {"capability": f"{p.major}.{p.minor}", "l2_bytes": p.L2_cache_size}
    if shutil.which("nvidia-smi"):
        fields = ("driver_version", "clocks.max.sm", "clocks.max.memory", "power.limit")
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().split(", ")
        if len(said) == len(fields):
            facts |= dict(zip(("driver", *fields[1:]), said, strict=True))
    return facts


def find_sanitizer() -> str | None:
    """compute-sanitizer on PATH, or where CUDA is."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    paths = [shutil.which("compute-sanitizer"), *(f"{h}/bin/compute-sanitizer" for h in homes if h)]
    return next((p for p in paths if p and os.access(p, os.X_OK)), None)


def print_table(header: list[str], rows: gpu_table.Rows) -> None:
    """With rich where it is, else in columns."""
    if importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.table import Table

        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 240).print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU, under Triton's interpreter")
    stages = ("build", "tests", "sanitizer", "benchmarks")
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages)
    parser.add_argument("--seconds", type=float, default=580, help="for everything")
    parser.add_argument("--out", type=Path, help=f"where the JSON goes; {RESULTS.name} unless rehearsed")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        print("no GPU: nothing to check (--rehearse tries the command itself on a CPU)", file=sys.stderr)
        return 2
    if options.out is None and not options.rehearse:
        options.out = RESULTS
    check = Check(options, sys.argv[1:] if arguments is None else arguments)
    for stage in stages:
        if stage in options.stages:
            getattr(check, stage)()
    check.write()
    check.show()
    return check.status


if __name__ == "__main__":
    sys.exit(main())
