# `make study` and `make test` do all the set-up there is. See README.md for the plain commands.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2

.PHONY: study view predict ensemble reference test lint format bench clean help

help:
	@echo "make study [ARGS='--epochs 1']   run the baseline study (sets everything up first)"
	@echo "make view [ARGS=runs/baseline]   show the latest run, or others, until Ctrl-C"
	@echo "make ensemble                    average the models of the latest run, or of ARGS=RUN"
	@echo "make predict ARGS=shoe.png       classify pictures with the latest run, or --run RUN"
	@echo "make reference [ARGS=...]        run a study with plain torch.nn, trial by trial"
	@echo "make test [ARGS='-k lanes']      run the tests, in WORKERS=2 processes"
	@echo "make lint | format | bench | clean"

study view predict ensemble reference: $(VENV)/.package
	$(BIN)/python -m fmnist.$@ $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.package
	$(BIN)/python benchmarks/engines.py --quick $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp a set of extras, so that `make study` does not wait for the test tools.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	    { echo "fmnist needs Python 3.11 to 3.13; name one with: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }

$(VENV)/.package: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dashboard]'
	@touch $@

$(VENV)/.test: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable '.[lint,test]'
	@touch $@
