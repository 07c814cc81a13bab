# `make demo` and `make test` need nothing but Python 3.11 or newer: each makes .venv and installs into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint types unit bench clean
.DELETE_ON_ERROR:

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,client,dev]'
	touch $@

demo: install
	$(BIN)/python examples/demo/demo.py

test: lint types unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

unit: install
	$(BIN)/python -m pytest

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
