# Everything happens in .venv, made by python3 -m venv and pip alone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv venv-test demo test test-faults bench bench-peers clean

venv: .venv/.installed
venv-test: .venv/.installed-test

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

demo: venv
	@$(BIN)/reval demo

test: venv-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile

# The fault tests in full: 100 kills, every kind of damage in every kind of file, the disk full in every stage.
test-faults: venv-test
	$(BIN)/pytest -m "full or not full" tests/faults

# Ratios of the learner to its baselines; with bench-peers done before, to TRL as well. Then the store's times.
bench: venv
	$(BIN)/python benchmarks/learner.py; learner=$$?; $(BIN)/python benchmarks/store.py && exit $$learner

# TRL in an environment of its own: it is measured against, never depended on.
bench-peers: .venv-peers/.installed

.venv-peers/.installed: Makefile
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 trl==1.16.0 'transformers<5.20'
	touch $@

clean:
	rm -rf .venv .venv-peers runs
