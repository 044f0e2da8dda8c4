# make demo     the whole chain on the bundled model, artifacts and report in demo-out/
# make test     the test suite
# make quality  ruff and mypy
# Each sets up what it needs in .venv the first time (about 10 minutes on 2 cores: llama.cpp is built from source).

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
LLAMA := llama-cpp-python==0.3.36
# GCC drops the stores to llama.cpp's AMX tile configuration, and every quantised file then kills the process on CPUs
# with AMX (ggml-org/llama.cpp#20824, #26954): build without it.
NO_AMX := -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
LLAMA_CMAKE := $(if $(filter x86_64,$(shell uname -m)),-DCMAKE_C_FLAGS='$(NO_AMX)' -DCMAKE_CXX_FLAGS='$(NO_AMX)')

.PHONY: setup demo test quality clean

setup: $(VENV)/.ready

demo: setup
	$(BIN)/saap-edge compile saap_edge/reference/demo.yaml --out demo-out

test: setup
	$(BIN)/python -m pytest

quality: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and pinned: asked for by another package, pip would take a build with gigabytes of CUDA.
$(VENV)/.torch:
	@test -n "$(PYTHON)" || { echo "python 3.11 or newer is needed: set PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -q torch==2.13.0
	@touch $@

$(VENV)/.llama: $(VENV)/.torch
	@echo "building llama.cpp from source, about 7 minutes on 2 cores (log: $(VENV)/llama-build.log)"
	@CMAKE_ARGS="$(LLAMA_CMAKE)" $(PIP) -v --no-binary llama-cpp-python --no-cache-dir $(LLAMA) 2>&1 | tee $(VENV)/llama-build.log \
	  | awk 'match($$0, /^ *\[[0-9]+\/[0-9]+\]/) { if (++n % 10 == 1) { print "  llama.cpp " substr($$0, RSTART, RLENGTH); fflush() } }' \
	  || { tail -40 $(VENV)/llama-build.log; exit 1; }
	@touch $@

$(VENV)/.ready: pyproject.toml $(VENV)/.llama
	$(PIP) -q -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo-out
