"""Everything there is to check on a GPU, in one command and ten minutes: `python -m benchmarks.gpu`.

First what is no measurement: csrc/cuda is built in place while torch.compile fills its cache, then the
kernels' tests run on the device while small plans of every kind are checked. Then come the rows that have
goals, compute-sanitizer over the small plans, and the other rows as far as there is time.

Every stage is a process of its own with a limit on its time; one that fails is recorded, with all it said in
a file beside the JSON, and the next runs.
Exit status: 0 when all that has to run went well, whatever the goals' verdicts; 1 when something failed, ran
out of time or could not run; 2 without a GPU. `--rehearse` runs the same code on tiny models on a CPU, under
Triton's interpreter: it measures nothing.
"""

# ruff: noqa: E402
from __future__ import annotations

from time import monotonic

STARTED = monotonic()  # importing torch may take half a minute where nothing of it was read before

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_goals, gpu_machine, gpu_table, gpu_tests
from benchmarks.jobs import Job, run_together
from benchmarks.measure import hardware, provenance, versions
from ligo_fast.bench.cases import group

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
PARTS = 4  # processes for the tests, and for the kernel cases: compiling takes a core each
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SECONDS = 560  # for everything, the limits of parts and what they need at least; the rows share what is left
LIMITS = {"build": 90, "tests": 130, "sanitizer": 110, "host": 40, "select": 70, "bert": 75, "gpt2": 85,
          "llama": 120, "tiny": 110, "learning": 80}  # fmt: skip
LEAST = {"bert": 25, "gpt2": 30, "llama": 45, "sanitizer": 40, "host": 15, "select": 25, "learning": 45}
WITH_GOALS = ("bert", "gpt2", "llama-7b")  # the rows that have to be measured
REHEARSED = ("tiny-gpt2", "tiny-llama")
NOWHERE = "not on PATH, under CUDA_HOME or in /usr/local/cuda"
STAGES = ("tests", "rows", "sanitizer", "more")


class Check:
    """One run: its options, its report, and the time left until `deadline`, on the clock of `monotonic`."""

    def __init__(self, options: argparse.Namespace, arguments: Sequence[str], deadline: float) -> None:
        self.rehearsal, self.out, self.deadline = options.rehearse, options.out, deadline
        self.log = None if self.out is None else self.out.with_suffix(".log")
        if self.log is not None:
            self.log.unlink(missing_ok=True)
        self.interpreter = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if self.rehearsal else {}
        self.report: dict[str, Any] = {"rehearsal": self.rehearsal}
        self.report |= provenance(arguments, "benchmarks.gpu")
        self.report |= {"hardware": hardware() | gpu_machine.facts(), "stages": [], "rows": {}}
        self.report["versions"] = versions() | {"cuda": torch.version.cuda}
        self.with_csrc: list[str] = []  # what tells the kernel cases that csrc has to be there

    def left(self) -> float:
        return self.deadline - monotonic()

    def write(self) -> None:
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(self.report, indent=1) + "\n")

    def run(self, jobs: Sequence[Job]) -> None:
        """Side by side."""
        if jobs:
            self.add(*run_together(jobs, self.deadline, self.log))

    def add(self, *results: dict[str, Any]) -> None:
        self.report["stages"] += results
        self.write()

    def python(self, name: str, limit: float, *arguments: str, **environment: str) -> Job:
        rehearse = ["--rehearse"] if self.rehearsal and arguments[0].startswith("benchmarks.") else []
        command = [sys.executable, "-m", *arguments, *rehearse]
        limit *= 4 if self.rehearsal else 1  # the interpreter is slow, and the machine may be busy
        return Job(name, command, limit, self.interpreter | environment)

    def left_out(self, name: str, reason: str, status: str = "missing", optional: bool = False) -> None:
        """A stage that does not run; one that is not optional is a failure of the check."""
        print(f"{name}: {reason}", flush=True)
        stage = {"stage": name, "status": status, "seconds": 0.0, "tail": [reason], "optional": optional}
        self.add(stage)

    def is_late(self, name: str, kind: str, optional: bool) -> bool:
        """Whether too little time is left for a stage; then it is left out."""
        if self.rehearsal or self.left() >= LEAST[kind]:
            return False
        reason = f"{max(self.left(), 0):.0f} s were left"
        self.left_out(name, reason, "skipped", optional)
        return True

    # what is no measurement

    def tests(self) -> None:
        """Building and torch.compile's cache; then tests and kernel cases, which use what was built."""
        self.run([*self._build(), *self._compiled()])
        self.run([*self._tests(), *self._cases()])

    def _build(self) -> list[Job]:
        """csrc/cuda for this GPU, in this folder, unless it is there or cannot be."""
        if self.rehearsal:
            self.left_out("build", "not in a rehearsal", optional=True)
        elif importlib.util.find_spec("ligo_fast._cuda") is not None:
            self.left_out("build", "there already", optional=True)
            self.with_csrc = ["--with-csrc"]
        elif importlib.util.find_spec("pybind11") is None:
            self.left_out("build", "needs pybind11, which is not installed", optional=True)
        elif (nvcc := gpu_machine.find_tool("nvcc")) is None:
            self.left_out("build", f"needs nvcc: {NOWHERE}", optional=True)
        else:
            major, minor = torch.cuda.get_device_capability()
            wanted = {"LIGO_FAST_FORCE_CUDA": "1", "LIGO_FAST_ARCHITECTURES": f"{major}{minor}"}
            wanted |= {"CUDA_HOME": str(Path(nvcc).resolve().parents[1])}  # which need not be on PATH
            command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--parallel=2"]
            self.with_csrc = ["--with-csrc"]
            return [Job("build", command, LIMITS["build"], wanted)]
        return []

    def _tests(self) -> list[Job]:
        """pytest on the device."""
        if lacking := gpu_tests.lacking():
            self.left_out("tests", f"needs {', '.join(lacking)}, which is not installed")
            return []
        parts, device = (1, "cpu") if self.rehearsal else (PARTS, "cuda")
        files = gpu_tests.files()[-1:] if self.rehearsal else gpu_tests.files()  # the interpreter is slow
        return [
            self.python(
                f"tests {n}/{parts}", LIMITS["tests"], "pytest", "-q", "-p", "no:cacheprovider", *files,
                LIGO_FAST_TEST_DEVICE=device, LIGO_FAST_TEST_PART=f"{n}/{parts}",
            )
            for n in range(1, parts + 1)
        ]  # fmt: skip

    def _cases(self) -> list[Job]:
        parts = 1 if self.rehearsal else PARTS
        return [
            self.python(
                f"kernel cases {n}/{parts}", LIMITS["tests"], "benchmarks.sanitize",
                f"--part={n}/{parts}", *self.with_csrc,
            )
            for n in range(1, parts + 1)
        ]  # fmt: skip

    def _compiled(self) -> list[Job]:
        """torch.compile of the published sequence, for the rows to find; Llama needs the GPU for itself."""
        rows = REHEARSED[:1] if self.rehearsal else WITH_GOALS[:2]
        return [
            self.python(f"compile {row}", LIMITS["build"], "benchmarks.gpu_rows", row, "--compile")
            for row in rows
        ]

    def sanitizer(self) -> None:
        """The kernel cases under each tool of compute-sanitizer."""
        if self.rehearsal:
            self.left_out("compute-sanitizer", "not in a rehearsal", optional=True)
        elif (tool := gpu_machine.find_tool("compute-sanitizer")) is None:
            self.left_out("compute-sanitizer", NOWHERE)
        elif not self.is_late("compute-sanitizer", "sanitizer", optional=False):
            self.run([self._sanitized(tool, name) for name in TOOLS])

    def _sanitized(self, sanitizer: str, tool: str) -> Job:
        job = self.python(tool, LIMITS["sanitizer"], "benchmarks.sanitize", *self.with_csrc)
        options = ["--tool", tool, "--error-exitcode", "9", "--target-processes", "application-only"]
        # calls fail where somebody asks what the driver can do, and those that matter raise in torch and
        # Triton; importing torch four times at once may take longer than a tool waits for it
        options += ["--report-api-errors", "no", "--launch-timeout", "0"]
        # torch would hand out memory that was written before: reading it would not be noticed
        return Job(
            f"compute-sanitizer {tool}", [sanitizer, *options, *job.command], job.limit,
            job.environment | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )  # fmt: skip

    # measurements: row by row, each in its own process, so that an error on the device ends only its own

    def rows(self) -> None:
        """Growing, its pull-back and the learning step, where they have goals."""
        for row in REHEARSED if self.rehearsal else WITH_GOALS:
            self._growth(row, optional=False)

    def more(self) -> None:
        """Training-free growth, learning with released gradients, the other rows, and the host's time."""
        if not self.is_late("select", "select", optional=True):
            self.report["select"] = self._row("select", "select", "benchmarks.gpu_select", optional=True)
        self._learning()
        for row in () if self.rehearsal else [r for r in group("growth") if r not in WITH_GOALS]:
            self._growth(row, optional=True)
        if not self.is_late("host", "host", optional=True):
            # on the CPU into a stub of a driver: kernels are compiled, and none runs or is interpreted
            apart = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
            arguments = ("benchmarks.host", "--rounds", "500")
            self.report["host"] = self._row("host", "host", *arguments, optional=True, **apart)

    def _growth(self, row: str, optional: bool) -> None:
        kind = row.partition("-")[0]
        if self.is_late(row, kind, optional):
            self.report["rows"][row] = self._why()
            return
        arguments = ("benchmarks.gpu_rows", row)
        self.report["rows"][row] = self._row(
            row, kind, *arguments, optional=optional, LIGO_FAST_BACKEND="triton"
        )

    def _learning(self) -> None:
        """Learning with released gradients: its peak memory and the time of a step."""
        name = "tiny" if self.rehearsal else next(iter(gpu_table.LEARNING))
        row, rows = f"learning {name}", self.report["rows"]
        if importlib.util.find_spec("transformers") is None:
            self.left_out(row, "needs transformers, which is not installed", optional=True)
            rows[row] = self._why()
        elif self.is_late(row, "learning", optional=True):
            rows[row] = self._why()
        else:
            arguments = ("benchmarks.learning_memory", "--pair", name, "--row")
            rows[row] = {"learning": self._row(row, "learning", *arguments, optional=True)}

    def _why(self) -> dict[str, Any]:
        """Of the stage that was left out last, for the row."""
        stage = self.report["stages"][-1]
        return {"status": stage["status"], "reason": stage["tail"][0]}

    def _row(
        self, row: str, kind: str, *arguments: str, optional: bool, **environment: str
    ) -> dict[str, Any]:
        """What a module writes; and why it ended early, if it did. An optional one may be out of time."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "row.json"
            job = self.python(row, LIMITS[kind], *arguments, "--out", str(out), **environment)
            (result,) = run_together([job], self.deadline, self.log)
            found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
        self.add(result | {"optional": optional and result["status"] == "timed out"})
        reason = {"status": result["status"], "reason": " ".join(result["tail"][-1:])[:300]}
        return reason | found if result["status"] != "passed" else found

    def show(self) -> None:
        """The tables and the verdict; a rehearsal's rows are other models, so it has none."""
        if not self.rehearsal:
            gpu_table.show(self.report)
            print(gpu_goals.summary(self.report["goals"]))
        for stage in self.report["stages"]:
            print(f"{stage['stage']}: {stage['status']}, {stage['seconds']} s")
        if self.rehearsal:
            print("a rehearsal: nothing was measured")
        if self.log is not None:
            said = f", what failed said to {self.log}" if self.log.exists() else ""
            print(f"written to {self.out}{said}")

    def judge(self) -> None:
        """Whether each goal is met; a rehearsal has none."""
        rows = list(group("growth"))
        self.report["goals"] = (
            [] if self.rehearsal else gpu_goals.verdicts(self.report, rows, list(group("select")))
        )
        self.write()

    @property
    def status(self) -> int:
        """1 when a stage failed or ran out of time, or one that is not optional did not run."""
        return int(any(s["status"] != "passed" and not s.get("optional") for s in self.report["stages"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU, under Triton's interpreter")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for everything; {SECONDS}")
    out = f"where the JSON goes, and what failed said beside it; {RESULTS.name} unless rehearsed"
    parser.add_argument("--out", type=Path, help=out)
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        print("no GPU: nothing to check (--rehearse tries the command itself on a CPU)", file=sys.stderr)
        return 2
    if options.out is None and not options.rehearse:
        options.out = RESULTS
    told = sys.argv[1:] if arguments is None else arguments
    check = Check(options, told, STARTED + options.seconds)
    for stage in STAGES:
        if stage in options.stages:
            getattr(check, stage)()
    check.judge()
    check.show()
    return check.status


if __name__ == "__main__":
    sys.exit(main())
