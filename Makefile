# make install   a virtual environment in .venv with everything, at the versions of constraints.txt
# make demo      the loop on the miniature, offline, on a CPU: a detector for pianos on the road from prompts alone
# make test      the whole test suite
# make lint      ruff and mypy
# Nothing is installed twice: .venv/.installed is renewed when one of its prerequisites changes.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed

.PHONY: install demo test lint

install: $(STAMP)

$(PY):
	$(PYTHON) -m venv $(VENV)

# The second line: daam by itself, because it pins versions of 2023 that it runs without.
$(STAMP): pyproject.toml constraints.txt | $(PY)
	$(PIP) install --quiet -c constraints.txt -e ".[all,dev]"
	$(PIP) install --quiet --no-deps -c constraints.txt daam
	touch $@

demo: $(STAMP)
	$(PY) -m diffugen.cli bootstrap

test: $(STAMP)
	$(PY) -m pytest -q

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
