# `make demo`: what the tool does, in a minute. `make test`: every check that CI runs. Both set up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := requirements/run.txt requirements/dev.txt
DEMO := runs/demo

.DELETE_ON_ERROR:
.PHONY: help venv test lint types tests demo bench models format clean

help:
	@echo "make demo    search a shipped, trained model under a budget and print the result"
	@echo "make test    every check that CI runs: lint, types, tests"
	@echo "make lint types tests   one of them"
	@echo "make bench   measure speed and memory against their limits"
	@echo "make models  train the shipped models again"
	@echo "make venv    only set up $(VENV); PYTHON=python3.12 chooses the interpreter"
	@echo "make clean   remove $(VENV), caches and $(DEMO)"

venv: $(VENV)/.installed

test: lint types tests

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: venv
	$(BIN)/mypy

tests: venv
	$(BIN)/pytest --numprocesses auto --dist worksteal

format: venv
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: venv
	rm -rf $(DEMO)
	$(BIN)/conet-onnx search models/digits_resnet8.onnx --data digits --backend torch --budget macs=0.5 --out $(DEMO)

bench: venv
	$(BIN)/python tools/bench_core.py

models: venv
	$(BIN)/python tools/make_models.py

clean:
	rm -rf $(VENV) $(DEMO) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# torch comes first and alone: it may bring CUDA libraries that no lock can list for every machine. All else is listed
# in full and installed without dependencies, so that nothing replaces torch or pulls another build of it.
$(VENV)/.locked: $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "conet-onnx needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) from $(LOCK): about 2 GB, a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed. On Debian: apt install python3-venv" >&2; exit 1; }
	@echo "1/3 torch"
	@$(PIP) install -qq --progress-bar off --constraint requirements/run.txt torch
	@echo "2/3 the other packages"
	@$(PIP) install -qq --progress-bar off --no-deps $(LOCK:%=--requirement %)
	@$(PIP) check
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.locked
	@echo "3/3 conet-onnx"
	@$(PIP) install -qq --progress-bar off --no-deps --no-build-isolation --editable .
	@touch $@
