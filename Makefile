# `make demo` and `make test` need Python 3.11 or newer and make; everything else is set up in .venv.
PYTHON ?= python3
OLDEST ?= python3.11
NEWEST ?= python3.13
BIN := .venv/bin
# modules are compiled when they are first imported: half of the time of an installation went into those that never are
INSTALL := -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

# which files `make test-floors` runs: those that meet numpy, scipy, scikit-learn, plotly, h5py, safetensors, numba,
# igraph or xarray, not whole trainings
FLOORS := catalog checkpoint computation connectivity constraints data figures interchange kernel layout parameters \
  sanity stage statistics statistics_figures storage surface symmetry topology topology_figures trajectory versions

.PHONY: demo test test-floors test-oldest test-newest bench lecture check dist clean

demo: .venv/demo
	$(BIN)/landscape demo

test: check
	$(BIN)/pytest -n auto

# CI's second set: the oldest versions of everything but torch, which stays the build of constraints.txt, since an old one
# brings CUDA; without the extras and callbacks that take long to install, whose tests skip
test-floors: .venv-floors/test
	.venv-floors/bin/pytest -n auto $(FLOORS:%=tests/test_%.py)

# the whole suite with the oldest and the newest versions that are supported; on Linux the torch of each brings
# CUDA, and each environment takes some 7 GB
test-oldest: .venv-oldest/test
	.venv-oldest/bin/pytest -n auto

test-newest: .venv-newest/test
	.venv-newest/bin/pytest -n auto

# against peers, on real data: LANDSCAPE_DATA names the folder of MNIST and CIFAR-10, else they are downloaded;
# some twenty minutes on two cores, during which nothing else should run
bench: .venv/bench
	$(BIN)/python scripts/benchmarks/evaluation.py
	$(BIN)/python scripts/benchmarks/restarts.py
	$(BIN)/python scripts/benchmarks/hessian.py
	$(BIN)/python scripts/benchmarks/scaling.py

# the lecture's figures, on MNIST and CIFAR-10 where LANDSCAPE_DATA names their folder, else on digits
lecture: .venv/lecture
	$(BIN)/python scripts/lecture_figures.py

check: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

dist: .venv/test
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf .venv .venv-floors .venv-oldest .venv-newest build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "landscape needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python $(INSTALL) --constraint constraints.txt --editable '.[images]'
	touch $@

.venv/bench: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python $(INSTALL) --constraint constraints.txt --editable '.[bench]'
# Without what they require: torchvision, whose build must match torch's; NumPy 1; ghalton, which g++ cannot compile.
# Benchmarks leave out what is not there, and say so.
	-$(BIN)/python $(INSTALL) --no-deps curvlinops-for-pytorch==3.0.1
	-$(BIN)/python $(INSTALL) --no-deps landscaper==1.3.1 nglpy==1.1.7 topopy==1.0.4
	touch $@ .venv/demo

.venv/lecture: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python $(INSTALL) --constraint constraints.txt --editable '.[lecture]'
	touch $@ .venv/demo

.venv/test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python $(INSTALL) --constraint constraints.txt --editable '.[test]'
	touch $@ .venv/demo .venv/lecture

# torch 2.13 needs a newer sympy than the floor
.venv-floors/test: pyproject.toml constraints.txt constraints-oldest.txt
	$(OLDEST) -m venv .venv-floors
	grep -vE '^(torch|sympy)==' constraints-oldest.txt | cat - constraints.txt > .venv-floors/constraints.txt
	.venv-floors/bin/python $(INSTALL) --constraint .venv-floors/constraints.txt \
	  --editable '.[images,fast,graph,xarray]' pytest pytest-xdist hypothesis gudhi
	touch $@

.venv-oldest/test: pyproject.toml constraints-oldest.txt
	$(OLDEST) -m venv .venv-oldest
	.venv-oldest/bin/python $(INSTALL) --constraint constraints-oldest.txt --editable '.[test]'
	touch $@

.venv-newest/test: pyproject.toml
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/python $(INSTALL) --upgrade --upgrade-strategy eager --editable '.[test]'
	touch $@
