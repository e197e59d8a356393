# Everything runs in a virtual environment of its own; nothing outside this folder is touched.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
TRITON ?= triton==3.7.1
GPU_PYTHON ?= python3

.PHONY: help setup demo test lint bench microbench results report kernel-report gpu-check wheel sanitize clean

help:
	@echo "make demo    train a small GPT-2, grow it by each method, print the table (QUICK=1, METHODS=all, DATA=path)"
	@echo "make test    lint, types and tests"
	@echo "make bench   CPU benchmarks: against the published sequence, FastKron, copies; time against size"
	@echo "make results every figure of README and docs again on this machine; an hour and a half (CHECKPOINT_ARGS='--mergekit PATH')"
	@echo "make report  tables and plots of README and docs from benchmarks/results/"
	@echo "make gpu-check  on a GPU: tests, compute-sanitizer, benchmarks; 10 minutes (GPU_PYTHON=python3, GPU_ARGS=--rehearse)"
	@echo "make wheel   dist/*.whl with the CUDA part for sm_80, 86, 89, 90a, 100 and PTX; needs nvcc, but no GPU"
	@echo "make sanitize  the tests of the compiled C++ under address and undefined-behaviour sanitizers"
	@echo "make kernel-report  what the compiler makes of every GPU kernel: registers, spills, shared memory, wgmma"

# On Linux the default torch wheel brings several GB of CUDA libraries; TORCH=... picks another build, TRITON=...
# the release of Triton that belongs to it.
$(VENV)/ready: pyproject.toml setup.py $(shell find csrc -type f)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q "$(TORCH)" "$(TRITON)"
	$(BIN)/pip freeze | grep -iE '^(torch|triton)==' > $(VENV)/constraints.txt
	$(BIN)/pip install -q -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/ready

demo: setup
	$(BIN)/python -m ligo_fast.demo $(if $(QUICK),--quick) $(if $(METHODS),--methods $(METHODS)) $(if $(DATA),--data "$(DATA)") $(DEMO_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -type f)
	@if ! command -v g++ >/dev/null; then echo "no C++ compiler and its headers, so no clang-tidy"; exit; fi; \
	    $(BIN)/clang-tidy --quiet csrc/bind.cpp csrc/cpu/*.cpp csrc/cuda/bind.cpp -- -std=c++17 \
	    '-DLIGO_ARCHITECTURES=""' $$($(BIN)/python -c 'import pybind11, sysconfig; \
	    print("-isystem", pybind11.get_include(), "-isystem", sysconfig.get_paths()["include"])')

test: lint
	$(BIN)/pytest -n auto --dist loadfile

# FastKron asks for torchvision, of which it uses nothing and whose wheel would not fit this torch.
bench: setup
	-$(BIN)/pip install -q --no-deps pyfastkron
	$(BIN)/python -m benchmarks.select
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds
	$(BIN)/python -m benchmarks.cpu $(BENCH_ARGS)

# Every figure of README and docs that a CPU can give, and then the documents; about an hour and a half.
results: bench
	$(BIN)/python -m benchmarks.host
	$(BIN)/python -m benchmarks.sharded
	$(BIN)/python -m benchmarks.learning_memory
	$(BIN)/python -m benchmarks.checkpoint $(CHECKPOINT_ARGS)
	$(BIN)/python -m benchmarks.savings --fresh --preset cpu
	$(BIN)/python -m benchmarks.savings --fresh --preset tried
	$(BIN)/python -m benchmarks.savings --fresh --preset moments
	$(BIN)/python -m benchmarks.report

kernel-report: setup
	$(BIN)/python -m ligo_fast.kernels.report $(REPORT_ARGS)

# Installs nothing: GPU_PYTHON has torch and triton already, and the code is used from this folder. What it finds
# is in benchmarks/results/gpu.json (elsewhere: GPU_ARGS="--out FILE"); what failed parts said in gpu.log beside it.
gpu-check:
	$(GPU_PYTHON) -m benchmarks.gpu $(GPU_ARGS)

# On Linux tagged manylinux, in dist/manylinux.
wheel: setup
	rm -rf build dist
	LIGO_FAST_FORCE_CUDA=1 $(BIN)/pip wheel -q --no-deps -w dist .
	if [ "$$(uname)" = Linux ]; then PATH="$(CURDIR)/$(BIN):$$PATH" \
	    $(BIN)/python -m auditwheel repair --strip -w dist/manylinux dist/*.whl; fi
	@find dist -name '*.whl' -exec ls -l {} +

# A build of its own; the interpreter is not instrumented, so the runtimes are loaded before it.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: setup
	rm -rf build
	CXXFLAGS="$(SANITIZE) -fno-omit-frame-pointer -g1" LDFLAGS="$(SANITIZE)" LIGO_FAST_CUDA=0 LIGO_FAST_FORCE_CUDA=0 \
	    $(BIN)/pip install -q --no-deps --target build/sanitize .
	nm -D build/sanitize/ligo_fast/_cpu.*so | grep -q __asan_report
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	    $(BIN)/pytest -o pythonpath=build/sanitize tests/test_select.py tests/test_sums.py \
	    tests/test_noise.py tests/test_cpu.py tests/test_split.py tests/test_layouts.py

report: setup
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf $(VENV) build dist *.egg-info ligo_fast/*.so demo-out
