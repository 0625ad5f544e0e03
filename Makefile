# Makes .venv with the tested versions, then calls the project's own commands.
# PyTorch's build for the CPU, which saves gigabytes: export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m spacy project run
BENCH_RUN ?= conll2003

PORT ?= 8000

.PHONY: quickstart all app serve bench bench-full bench-accuracy test test-slow check clean

quickstart all app clean: .venv/installed
	$(RUN) $@

# Not through the project, which kills what Ctrl-C does not end at once
serve: .venv/installed
	$(BIN)/python -m scripts.serve $(PIPELINE) --port $(PORT)

bench: .venv/installed-bench .venv-peers/installed
	$(RUN) benchmark . --vars.run $(BENCH_RUN)

bench-full: .venv/installed-bench
	$(RUN) benchmark-full . --vars.run $(BENCH_RUN)

bench-accuracy: .venv/installed-bench
	$(RUN) accuracy . --vars.run $(BENCH_RUN)

# The fast tests, some minutes
test: .venv/installed
	$(BIN)/python -m pytest -m "not slow"
	@echo "The slow tests were left out: make test-slow runs them"

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.txt --constraint constraints.txt
	touch $@

.venv/installed-bench: .venv/installed requirements-bench.txt
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements-bench.txt --constraint constraints.txt
	touch $@

.venv-peers/installed: requirements-peers.txt constraints-peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --disable-pip-version-check --requirement requirements-peers.txt --constraint constraints-peers.txt
	touch $@
