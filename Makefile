# Everything happens in .venv, made by python3 -m venv and pip alone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv venv-test demo test clean

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
	$(BIN)/pytest

clean:
	rm -rf .venv runs
