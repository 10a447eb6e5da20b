# What people and CI run alike. Python packages go into $(VENV); only `check` and `test` need packages of the system.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help run test check fuzz torture mutants bench lock clean

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 12

run: $(VENV)/stamp ## start everything on this machine; flags: make run ARGS="--port 8001"
	@exec $(BIN)/seriatim up $(ARGS)

# Tests and measurements compile a client in C: g++ brings all that gcc needs for it.
test: $(VENV)/stamp ## run all tests; some: make test ARGS=tests/test_compose.py
	@sh .ci/packages g++
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/stamp ## lint, formatting, types
	@sh .ci/packages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	luacheck lua

# Other requests each time; it says first how to try the same again.
fuzz: $(VENV)/stamp ## random requests, bytes, files; longer: make fuzz ARGS="--fuzz-seconds 3600"
	@sh .ci/packages
	$(BIN)/python -m pytest -n 0 -v -s --timeout 0 --fuzz-seconds 300 $(ARGS) \
		tests/http/test_schema_fuzz.py tests/http/test_wire_fuzz.py tests/test_fuzz.py

# Other faults each time, some minutes for each stack; it says first how to draw the same ones again.
torture: $(VENV)/stamp ## hurt running stacks and audit what they answered; longer: make torture ARGS="--faults 300"
	@sh .ci/packages
	PYTHONPATH=tests:bench $(BIN)/python -m torture $(ARGS)

mutants: $(VENV)/stamp ## plant deliberate bugs in copies of the tree: do the tests find them? some: make mutants ARGS=epoch
	@sh .ci/packages
	PYTHONPATH=tests $(BIN)/python -m mutants $(ARGS)

bench: $(VENV)/stamp ## measure beside rivals, into bench/results/; for figures to keep: make bench ARGS=--full
	@sh .ci/packages wrk g++
	$(BIN)/python -m bench --results bench/results $(ARGS)

# Not by way of the stamp: a lock that no longer fits pyproject.toml must not keep us from making another.
lock: ## pin what pyproject.toml asks for; newest versions: make lock ARGS=--upgrade
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(PIP) install uv; }
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --quiet \
		--custom-compile-command "make lock" --output-file requirements.lock $(ARGS)

clean: ## remove what can be made again; never data/, which holds issued numbers
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/stamp: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Use Python 3.11 or newer: make PYTHON=...")'
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@wrong=$$($(BIN)/python -m pip check) || { echo "$$wrong"; echo "The lock is out of date. Run: make lock"; exit 1; }
	@touch $@
