# `make demo` and `make test` need Python 3.11 or newer and make; everything else is set up in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check dist clean

demo: .venv/demo
	$(BIN)/landscape demo

test: check
	$(BIN)/pytest -n auto

check: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

dist: .venv/test
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf .venv build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "landscape needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[images]'
	touch $@

.venv/test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@ .venv/demo
