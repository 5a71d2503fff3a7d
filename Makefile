# Two commands: `make demo` and `make test`. Both make .venv first, with the versions that CI uses.
# PIP_ARGS adds to every installation, such as an index with CPU builds of torch (see README).
PYTHON ?= python3
PIP_ARGS ?=
JOBS ?= 2
BIN := .venv/bin

# One thread a process: JOBS test processes and DDP ranks share the cores.
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg

.PHONY: demo test test-slow test-gpu lint types check clean

demo: .venv/installed
	$(BIN)/morphlightning demo

test: .venv/installed-dev
	$(TEST_ENV) $(BIN)/pytest -n $(JOBS) --dist worksteal

test-slow: .venv/installed-dev
	$(TEST_ENV) $(BIN)/pytest -m slow

test-gpu: .venv/installed-dev
	$(BIN)/pytest -m gpu

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy

check: lint types test

.venv/created:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/created pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/created pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch .venv/installed $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
