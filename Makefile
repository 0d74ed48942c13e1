# SPDX-License-Identifier: GPL-2.0-only

define HELP
make run              boot the default patched kernel on 8 CPUs, poke it, and print the verdict
make run ARGS="..."   the same with more options, such as ARGS="--smp 2 --kernel debian:6.1"
make test             lint and all tests: unit tests take seconds, those with real guests minutes
                      (ARGS="..." goes to pytest)
make test-unit        only the tests that boot nothing
make test-browser     only the tests that look at the reports with a browser
make test-vm          only the tests that boot a guest
make test-faults      300 faults: signals, full disks, damaged files, hostile guests and input;
                      takes an hour (ARGS="--count 50 --seed 2 --only 'signal/*'" as you like)
make test-lowest      the unit tests with the lowest versions of all Python packages
make packages         build sdist and wheel into build/dist
make lock             choose the versions of dev.lock anew, which make setup installs
make lint             ruff check, ruff format --check, mypy --strict
make doctor           check what this machine has, what is missing, and what that means
make setup            install what is needed; every command above does this first
make clean            remove what was made in this checkout (the cache of kernels stays; to make
                      it smaller, use .venv/bin/orchestrator kernels clean)
endef

BIN := .venv/bin
ARGS :=

# make's options and its jobserver must not reach the builds of kernels and of the test module.
CLEAN_ENV := env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u MAKEOVERRIDES

# Limit for one test, in seconds, against a hang. The first VM test has to fetch and build a kernel.
TIMEOUT := 1800

.PHONY: help run test test-unit test-browser test-vm test-faults test-lowest packages lock lint doctor setup browser clean

help:
	$(info $(HELP))@:

# If an option is given twice, the last one counts, so ARGS can change --smp. make itself exits with
# 2 whenever a run does not pass; its message has the exit status of orchestrator (1: the kernel
# failed, 125: it could not be tested). Call $(BIN)/orchestrator directly where the status matters.
run: setup
	@$(CLEAN_ENV) $(BIN)/orchestrator run --smp 8 $(ARGS)

# All three tools run even if an earlier one fails. Leaves 0 or 1 in $$lint.
RUN_LINT = lint=0; \
	$(BIN)/ruff check . || lint=1; \
	$(BIN)/ruff format --check . || lint=1; \
	$(BIN)/mypy --strict || lint=1

# Of the injected faults only the short part, which takes three minutes. It comes last, when the
# kernels have been built.
TESTS := tests/unit tests/browser tests/vm tests/faults

# The tests run even if lint fails. One pytest runs the unit tests, then those that boot a guest, so
# that there is only one summary.
test: setup browser
	@$(RUN_LINT); tests=0; \
	$(CLEAN_ENV) $(BIN)/python -m pytest --timeout=$(TIMEOUT) $(TESTS) $(ARGS) || tests=1; \
	say() { [ "$$1" = 0 ] && echo passed || echo FAILED; }; \
	echo "make test: lint $$(say $$lint), tests $$(say $$tests)"; \
	exit $$((lint | tests))

test-unit: setup
	@$(CLEAN_ENV) $(BIN)/python -m pytest --timeout=60 tests/unit $(ARGS)

test-browser: setup browser
	@$(CLEAN_ENV) $(BIN)/python -m pytest --timeout=120 tests/browser $(ARGS)

test-vm: setup
	@$(CLEAN_ENV) $(BIN)/python -m pytest --timeout=$(TIMEOUT) tests/vm $(ARGS)

test-faults: setup
	@$(CLEAN_ENV) PYTHONPATH=tests $(BIN)/python -m faults --count 300 $(ARGS)

# Old versions have wheels for the oldest Python only, which `PYTHON=python3.11` names.
PYTHON := $(BIN)/python
LOWEST := build/lowest
PIP_QUIETLY := -m pip install -qq --no-input --disable-pip-version-check
test-lowest: setup
	@$(PYTHON) -m venv --clear $(LOWEST)
	@$(PYTHON) tests/lowest.py >$(LOWEST)/lowest.txt
	@$(LOWEST)/bin/python $(PIP_QUIETLY) --constraint $(LOWEST)/lowest.txt --editable '.[dev]'
	@$(CLEAN_ENV) $(LOWEST)/bin/python -m pytest --timeout=60 tests/unit $(ARGS)

packages: setup
	@rm -rf build/dist
	@$(BIN)/python -m build --outdir build/dist

# --universal: for every Python and platform, whatever this one is. No file may name a mirror.
lock: setup
	@$(BIN)/python -m venv --clear build/lock
	@build/lock/bin/python $(PIP_QUIETLY) uv
	@{ echo '# The versions for development; `make lock` makes this file.'; \
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras \
		--no-emit-index-url --no-annotate --no-header pyproject.toml; } >build/dev.lock
	@mv build/dev.lock dev.lock

lint: setup
	@$(RUN_LINT); exit $$lint

doctor: setup
	@$(BIN)/orchestrator doctor

setup:
	@./setup

browser:
	@./setup browser

clean:
	rm -rf build .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find orchestrator tests -name __pycache__ -prune -exec rm -rf {} +
