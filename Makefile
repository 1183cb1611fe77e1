# make demo    the flagship study on bundled digits, and its table        make test    the tests, but for the slow ones
# make lint    format, ruff, mypy (strict), import walls                  make slow    tests that kill, freeze and wait
# make bench   side-by-side measurements                                  make soak    ten times as many inputs
# make chaos   the random-kill proof, whole: 880 kills, 15 minutes; `make slow` has a share of it
# make docs    the generated references, written anew                     make site    the documents as a web site, in build/site

PYTHON ?= python3
BIN := .venv/bin
PYTEST_OPTIONS ?= -n 2 --dist loadfile
# they wait more than they compute
SLOW_OPTIONS ?= -n 3 --dist loadfile

.PHONY: help demo test lint format bench chaos slow soak docs site clean

help:
	@sed -n '1,5s/^# //p' Makefile

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ablate needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/ready-for-tests: .venv/ready Makefile
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint,dashboard,examples,docs]'
	@touch $@

demo: .venv/ready
	$(BIN)/ablate run studies/basenet.yaml --profile quick

test: .venv/ready-for-tests
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) -m 'not slow'

# kills at random and at named places, signals at every moment, clocks, load: what takes more than ten seconds
slow: .venv/ready-for-tests
	$(BIN)/python -m pytest $(SLOW_OPTIONS) -m slow

lint: .venv/ready-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_walls.py

format: .venv/ready-for-tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# seeded; the statistics judged by their own bounds, speed by ratios within one run: machines are shared
bench: .venv/ready-for-tests
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.overhead
	-$(BIN)/python -m benchmarks.data
	-$(BIN)/python -m benchmarks.cpu
	-$(BIN)/python -m benchmarks.profile
	-$(BIN)/python -m benchmarks.memory
	-$(BIN)/python -m benchmarks.fused
	-$(BIN)/python -m benchmarks.gpu
	-$(BIN)/python -m benchmarks.claims

# the same tests, ten times as many inputs: 20,000 studies, 2,000 damaged stores and checkpoints; half an hour
soak: .venv/ready-for-tests
	ABLATE_TEST_SOAK=1 $(BIN)/python -m pytest -n 0 -s tests/study/test_study_fuzz.py tests/store tests/test_hostile_files.py
# ABLATE_TEST_CHAOS_SEED replays a run, ABLATE_TEST_CHAOS_KILLS sets another number of kills per study
chaos: .venv/ready-for-tests
	$(BIN)/python -m tests.chaos

docs: .venv/ready-for-tests
	$(BIN)/python -m docs.references

site: .venv/ready-for-tests
	$(BIN)/python -m docs.site build/site

clean:
	rm -rf .venv build dist *.egg-info
