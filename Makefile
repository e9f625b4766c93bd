# `make demo` and `make test` set up everything they need; both work on a fresh machine with Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := fivefold tests benchmarks

.PHONY: demo test test-dist test-slow check bench format clean

demo: $(VENV)/.installed  ## train the nano model on real text and write its report
	$(BIN)/fivefold run nano

test: $(VENV)/.installed-dev  ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not network and not dist"

test-dist: $(VENV)/.installed-dev  ## the tests of several processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "dist and not slow"

test-slow: $(VENV)/.installed-dev  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m "slow"

check: $(VENV)/.installed-dev  ## style, types, room contracts, spelling: what CI runs
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/lint-imports --no-cache | tail -n 9
	$(BIN)/typos
	$(BIN)/pyright

bench: $(VENV)/.installed-peers  ## every benchmark against its peer; JSON in benchmarks/results/
	$(BIN)/python benchmarks/run_all.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Torch first and alone, by its exact version: an index that holds a CPU build of it serves that one;
# the default index serves the CUDA build on Linux, which runs on a CPU too.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[peers]"
	touch $@

clean:  ## remove the environment and all runs
	rm -rf $(VENV) runs benchmarks/results
