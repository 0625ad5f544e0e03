# Makes .venv with the tested versions, then calls the project's own commands. RUN names a run, runs/<RUN>.yml.
# PyTorch's build for the CPU, which saves gigabytes: export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
BIN := .venv/bin
RUN ?= conll2003
# More variables, which come before those of the run's file: VARS="--vars.seed 1"
VARS ?=
STEP := $(BIN)/python -m scripts.run
STEPS := gather prelabel select export-tasks import-annotations adjudicate split audit search annotate-corpus corpus-view download convert explore debug teach train assemble evaluate analyze concepts compare package verify report publish reference corrupt effort bench-corpus
PORT ?= 8000
WORKERS ?= 1
# A process for each core, and some GB of memory for each
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

.PHONY: quickstart all distill continue $(STEPS) synthesize synthetic experiments document clean app serve bench bench-full ablation curve forecast continuing test test-slow test-live test-engines check

quickstart: .venv/installed
	$(STEP) all quickstart

all distill continue $(STEPS) clean: .venv/installed
	$(STEP) $@ $(RUN) $(VARS)

app experiments document: .venv/installed
	$(BIN)/python -m spacy project run $@

synthesize: .venv/installed-synthesize
	$(STEP) synthesize $(RUN) $(VARS)

# Not through the project, which kills what Ctrl-C does not end at once
serve: .venv/installed
	$(BIN)/python -m app.service $(PIPELINE) --port $(PORT) --workers $(WORKERS)

bench: .venv/installed-bench .venv-peers/installed
	$(STEP) benchmark $(RUN) $(VARS)

bench-full: .venv/installed-bench
	$(STEP) benchmark-full $(RUN) $(VARS)

ablation: .venv/installed-bench
	$(STEP) ablation $(RUN) $(VARS)

curve: .venv/installed-bench .venv-peers/installed
	$(STEP) curve $(RUN) $(VARS)

continuing: .venv/installed-bench
	$(STEP) continuing $(RUN) $(VARS)

synthetic: .venv/installed-bench .venv/installed-synthesize
	$(STEP) synthetic $(RUN) $(VARS)

# The curve of our pipeline alone, and what more documents would bring
forecast: .venv/installed
	$(STEP) curve $(RUN) --vars.contenders ours --vars.sizes quarter,half,all $(VARS)

# The fast tests, some minutes
test: .venv/installed-dev
	$(PYTEST) -m "not slow and not live"
	@echo "The slow tests were left out: make test-slow runs them"

test-slow: .venv/installed-dev
	$(PYTEST) -m slow

# Label Studio, which is installed for it
test-live: .venv/installed-dev
	$(BIN)/python -m pytest -m live

# Spark, which needs Java 17, and Ray: annotate-corpus with them, one test after the other
test-engines: .venv/installed-engines
	$(BIN)/python -m pytest -m engines

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.txt --constraint constraints.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements-dev.txt --constraint constraints.txt
	touch $@

.venv/installed-bench: .venv/installed requirements-bench.txt
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements-bench.txt --constraint constraints.txt
	touch $@

.venv/installed-synthesize: .venv/installed requirements-synthesize.txt
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements-synthesize.txt --constraint constraints.txt
	touch $@

.venv/installed-engines: .venv/installed-dev requirements-spark.txt requirements-ray.txt
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements-spark.txt --constraint constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements-ray.txt --constraint constraints.txt
	touch $@

.venv-peers/installed: requirements-peers.txt constraints-peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --disable-pip-version-check --requirement requirements-peers.txt --constraint constraints-peers.txt
	touch $@
