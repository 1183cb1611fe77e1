# make demo    the flagship study on bundled digits, and its table        make test    everything that must pass
# make lint    format, ruff, mypy (strict), import walls                  make bench   side-by-side measurements

PYTHON ?= python3
BIN := .venv/bin
PYTEST_OPTIONS ?= -n 2 --dist loadfile

.PHONY: help demo test lint format bench clean

help:
	@sed -n '1,2s/^# //p' Makefile

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ablate needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/ready-for-tests: .venv/ready Makefile
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint,dashboard]'
	@touch $@

demo: .venv/ready
	$(BIN)/ablate run studies/basenet.yaml --profile quick

test: .venv/ready-for-tests
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

lint: .venv/ready-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_walls.py

format: .venv/ready-for-tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# seeded, and judged by their own bounds, never by the clock: machines are shared
bench: .venv/ready-for-tests
	$(BIN)/python -m benchmarks.calibration

clean:
	rm -rf .venv build dist *.egg-info
