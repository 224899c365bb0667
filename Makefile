# `make` lists the targets. They share the virtual environment in .venv, which is set up at the versions of
# constraints.txt on the first call, and again when pyproject.toml or constraints.txt has changed.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed

SCRIPTS := $(wildcard reports/*/*.py)

.DEFAULT_GOAL := help
.PHONY: help install demo test fast lint check format picture build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## set up .venv with everything, at the versions of constraints.txt

$(PY):
	$(PYTHON) -m venv $(VENV)

# daam is installed separately because it pins versions from 2023 that it runs without.
$(STAMP): pyproject.toml constraints.txt | $(PY)
	$(PIP) install --quiet -c constraints.txt -e ".[all,dev]"
	$(PIP) install --quiet --no-deps -c constraints.txt daam
	touch $@

demo: $(STAMP) ## run the loop on the miniature: a detector for pianos on roads, offline, on a CPU
	$(PY) -m diffugen.cli bootstrap

# Tests run in one process per core, each on one thread, a file at a time; `make test WORKERS=0` runs them in one process.
WORKERS ?= auto
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(STAMP) ## run all tests
	$(PYTEST)

fast: $(STAMP) ## run the tests that are not marked slow
	$(PYTEST) -m "not slow"

# One mypy run per folder of reports/: they import neighbours by bare name, and several are called measure.py.
lint: $(STAMP) ## check style, layout, and types: ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(foreach folder,$(sort $(dir $(SCRIPTS))),\
		$(VENV)/bin/mypy --no-explicit-package-bases $(filter $(folder)%,$(SCRIPTS)) &&) true

check: lint fast ## run lint and the fast tests: before every commit

format: $(STAMP) ## lay out the code and fix what ruff can fix
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

picture: $(STAMP) ## draw docs/pictures/packages.svg from the imports
	$(PY) docs/draw_packages.py

build: $(STAMP) ## build the source distribution and the wheel in dist/
	$(PY) -m build

clean: ## delete caches and build products; keep .venv and runs
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage *.egg-info
	find diffugen docs loops reports tests -name __pycache__ -type d -prune -exec rm -rf {} +
