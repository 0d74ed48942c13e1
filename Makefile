# SPDX-License-Identifier: GPL-2.0-only

define HELP
make run              boot the default patched kernel on 8 CPUs, poke it, and say what became of it
make run ARGS="..."   the same with more options, such as ARGS="--smp 2 --kernel debian:6.1"
make test             all tests: unit tests in seconds, then real guests in minutes (ARGS="..." goes to pytest)
make test-unit        only those that boot nothing
make test-vm          only those that boot a guest
make lint             ruff and mypy
make doctor           what this machine has, what is missing, and what that means
make setup            only install what the above need, which each of them does first
make clean            remove what was made in this checkout (kernels stay in the cache: see make doctor)
endef

BIN := .venv/bin
ARGS :=

# What runs make itself (kernels, the test module) must not take our options and jobserver for its own.
ALONE := env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u MAKEOVERRIDES

# A guard against a hang, for one test: the first of the VM tests has a kernel to fetch and build.
TIMEOUT := 1800

.PHONY: help run test test-unit test-vm lint doctor setup clean

help:
	$(info $(HELP))@:

# Of two equal options the last one counts, so ARGS can change --smp. make's own exit status is 2 whenever a run does
# not end in PASS; what the orchestrator's was (1: the kernel failed, 125: it could not be tested) it says in its
# message. Call $(BIN)/orchestrator where the status matters.
run: setup
	@$(ALONE) $(BIN)/orchestrator run --smp 8 $(ARGS)

# One pytest for both, in the order of their names, so that there is one closing line and one status to read.
test: setup
	@$(ALONE) $(BIN)/python -m pytest --timeout=$(TIMEOUT) tests $(ARGS)

test-unit: setup
	@$(ALONE) $(BIN)/python -m pytest --timeout=60 tests/unit $(ARGS)

test-vm: setup
	@$(ALONE) $(BIN)/python -m pytest --timeout=$(TIMEOUT) tests/vm $(ARGS)

lint: setup
	@$(BIN)/ruff check .; status=$$?; $(BIN)/mypy --strict && exit $$status

doctor: setup
	@$(BIN)/orchestrator doctor

setup:
	@./setup

clean:
	rm -rf build .venv .pytest_cache .mypy_cache .ruff_cache orchestrator.egg-info
	find orchestrator tests -name __pycache__ -prune -exec rm -rf {} +
