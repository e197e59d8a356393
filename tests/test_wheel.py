"""setup.py's ways to build, and what the CUDA binary holds."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ligo_fast.native import cuda

ROOT = Path(__file__).parent.parent


def cuobjdump() -> str | None:
    """On PATH, or in triton's package."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        inside = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
        found = str(inside) if inside.exists() else None
    return found


def setup(monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, Any]:
    """setup.py's functions and what it hands to setuptools."""
    for name in ("LIGO_FAST_NO_EXT", "LIGO_FAST_CUDA", "LIGO_FAST_FORCE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("sysconfig.get_path", lambda _: "")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not list(Path(p).glob("nvidia/cu*"))])


def test_pure_python_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup(monkeypatch, LIGO_FAST_NO_EXT="1", LIGO_FAST_CUDA="1")["modules"] == []


def test_without_nvcc_the_cpp_part_is_built(
    no_nvcc: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pybind11")
    assert [m.name for m in setup(monkeypatch)["modules"]] == ["ligo_fast._cpu"]
    assert capsys.readouterr().err == ""
    assert [m.name for m in setup(monkeypatch, LIGO_FAST_CUDA="1")["modules"]] == ["ligo_fast._cpu"]
    said = capsys.readouterr().err
    assert "no nvcc" in said and said.count("\n") == 1
    with pytest.raises(SystemExit, match="no nvcc"):
        setup(monkeypatch, LIGO_FAST_FORCE_CUDA="1")


def test_nvcc_is_found_where_pip_puts_it(
    no_nvcc: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = tmp_path / "nvidia/cu13/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert setup(monkeypatch)["find_nvcc"]() == str(nvcc)


def test_architectures_as_options(monkeypatch: pytest.MonkeyPatch) -> None:
    options = setup(monkeypatch)["generate_code"]("90a 100+PTX")
    assert options == [
        "-gencode", "arch=compute_90a,code=sm_90a", "-gencode", "arch=compute_100,code=compute_100",
    ]  # fmt: skip


@pytest.mark.skipif(cuda.extension is None, reason="the CUDA part is not built")
def test_the_binary_has_the_architectures_that_it_names() -> None:
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump")
    listed = subprocess.run(
        [tool, "--list-elf", "--list-ptx", cuda.extension.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    files = [line.rsplit(".", 2)[1:] for line in listed.splitlines()]
    found = {f"{arch.removeprefix('sm_')}{'+PTX' if kind == 'ptx' else ''}" for arch, kind in files}
    assert found == set(cuda.extension.architectures.split())


@pytest.mark.skipif(cuda.extension is None, reason="the CUDA part is not built")
def test_it_loads_without_a_driver_and_links_neither_torch_nor_cuda() -> None:
    code = "import sys; from ligo_fast._cuda import device_count; print(device_count()[0] >= 0)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {})
    assert run.stdout.strip() == "True", run.stderr
    if shutil.which("ldd"):
        needs = subprocess.run(["ldd", cuda.extension.__file__], capture_output=True, text=True).stdout
        assert not any(word in needs for word in ("libtorch", "libc10", "libcuda"))
