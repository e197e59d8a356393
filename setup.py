"""The compiled parts, both optional: `ligo_fast._cpu` in C++ and `ligo_fast._cuda` in CUDA C++.

LIGO_FAST_NO_EXT=1 builds neither. LIGO_FAST_CUDA=1 builds the CUDA part if nvcc is found (on PATH, in
CUDA_HOME, or from the pip package nvidia-cuda-nvcc); LIGO_FAST_FORCE_CUDA=1 makes a missing nvcc an error.
LIGO_FAST_ARCHITECTURES is a list for quick builds, "90a" say.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

ARCHITECTURES = "80 86 89 90a 100 100+PTX"
FAST = ["-O3"] if os.name != "nt" else []


def on(name):
    return os.environ.get(name) == "1"


def find_nvcc():
    """nvcc, or None."""
    homes = [Path(os.environ[k]) for k in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(k)]
    sites = [Path(p) for p in {*sys.path, sysconfig.get_path("purelib")} if p]
    places = [home / "bin" for home in homes]
    places += [Path(found).resolve().parent for found in [shutil.which("nvcc")] if found]
    places += [nvcc.parent for site in sites for nvcc in sorted(site.glob("nvidia/cu*/bin/nvcc"))]
    return next((str(p / "nvcc") for p in places if (p / "nvcc").exists()), None)


def toolkit(nvcc):
    """The folder with its headers and libraries; nvcc may be a link or a script that calls another."""
    said = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    top = [line.split("=", 1)[1] for line in said.splitlines() if line.startswith("#$ TOP=")]
    return Path(top[0]).resolve() if top else Path(nvcc).resolve().parent.parent


def wanted_nvcc():
    """The compiler for the CUDA part; None where it is left out, which is said in one line."""
    force = on("LIGO_FAST_FORCE_CUDA")
    if not (force or on("LIGO_FAST_CUDA")):
        return None
    nvcc = find_nvcc()
    if nvcc is None and force:
        raise SystemExit("LIGO_FAST_FORCE_CUDA=1, but no nvcc: not on PATH, in CUDA_HOME or nvidia/cu*/bin")
    if nvcc is None:
        print("ligo_fast: no nvcc, so only the C++ part is built", file=sys.stderr)
    return nvcc


def generate_code(architectures):
    """nvcc's options for "80 90a 100 100+PTX": machine code, and PTX for what comes later."""
    options = []
    for name in architectures.split():
        number, _, ptx = name.partition("+")
        options += ["-gencode", f"arch=compute_{number},code={'compute' if ptx else 'sm'}_{number}"]
    return options


def compile_cuda(nvcc, source, target, architectures):
    """One .cu file as an object, five architectures on as many threads as there are cores."""
    options = [
        "-O3",
        "-std=c++17",
        "-Xcompiler",
        "-fPIC,-fvisibility=hidden",
        "--threads",
        str(os.cpu_count()),
    ]
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    command = [nvcc, *options, *generate_code(architectures), "-c", source, "-o", target]
    subprocess.run(command, check=True)


def extensions():
    """What is to be built, and the command that builds it."""
    if on("LIGO_FAST_NO_EXT"):
        return [], {}
    try:
        from pybind11.setup_helpers import Pybind11Extension, build_ext
    except ImportError:
        print("ligo_fast: no pybind11, so nothing is compiled; torch does the work", file=sys.stderr)
        return [], {}
    headers = [str(path) for path in sorted(Path("csrc").rglob("*.h"))]
    found = [
        Pybind11Extension(
            "ligo_fast._cpu",
            ["csrc/bind.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))],
            depends=headers,
            cxx_std=17,
            extra_compile_args=FAST,
            optional=True,  # without a compiler a warning, not an error
        )
    ]
    nvcc = wanted_nvcc()
    if nvcc is None:
        return found, {}
    architectures = os.environ.get("LIGO_FAST_ARCHITECTURES", ARCHITECTURES)
    root = toolkit(nvcc)
    kernels = sorted(map(str, Path("csrc/cuda").glob("*.cu")))
    found.append(
        Pybind11Extension(
            "ligo_fast._cuda",
            ["csrc/cuda/bind.cpp"],
            depends=[*headers, *kernels],
            cxx_std=17,
            extra_compile_args=FAST,
            define_macros=[("LIGO_ARCHITECTURES", f'"{architectures}"')],
            library_dirs=[str(root / lib) for lib in ("lib64", "lib") if (root / lib).exists()],
            libraries=["cudart_static", "dl", "rt", "pthread"],
        )
    )

    class Build(build_ext):
        def build_extension(self, extension):
            if extension.name == "ligo_fast._cuda":
                extension.extra_objects = []
                for source in kernels:
                    target = str(Path(self.build_temp) / f"{Path(source).stem}.cuda.o")
                    compile_cuda(nvcc, source, target, architectures)
                    extension.extra_objects.append(target)
            super().build_extension(extension)

    return found, {"build_ext": Build}


modules, commands = extensions()
setup(ext_modules=modules, cmdclass=commands)
