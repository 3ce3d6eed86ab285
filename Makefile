# `make help` lists the targets. Each sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PROFILE ?= auto
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup test test-all lint format lock reproduce-table1 train-embedded clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(READY)  ## install the pinned packages into .venv (about 6 GB, most of it torch)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mmg_bench needs Python 3.11 or newer; give its path: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m ensurepip >/dev/null
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $(READY)

reproduce-table1: $(READY)  ## Table 1; PROFILE=paper or embedded (default: paper if this machine can run it, else embedded)
	$(BIN)/mmg-bench table table=table1 profile=$(PROFILE) $(ARGS)

# Where Python may not write bytecode, every process that a test starts would compile all that it imports: it may here.
test test-all: export PYTHONDONTWRITEBYTECODE :=
# Each has one thread (tests/conftest.py).
PROCESSES ?= 2

test: lint  ## format check, lint, types and the fast tests
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal -m "not slow and not gpu" $(ARGS)

test-all: lint  ## the same, and the slow tests
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal -m "not gpu" $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy

format: $(READY)  ## format and fix the code with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY)  ## pin the newest packages that pyproject.toml allows
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--upgrade --quiet --custom-compile-command "make lock" -o requirements.lock

train-embedded: $(READY)  ## train the embedded model again (an hour or more on two cores); resumes
	$(BIN)/python scripts/train_embedded.py $(ARGS)

clean:  ## remove the environment and the outputs of all runs
	rm -rf $(VENV) outputs
