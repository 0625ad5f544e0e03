# Makes .venv with the tested versions, then calls the project's own commands.
# PyTorch's build for the CPU, which saves gigabytes: export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m spacy project run

.PHONY: quickstart all test check clean

quickstart all clean: .venv/installed
	$(RUN) $@

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.txt --constraint constraints.txt
	touch $@
