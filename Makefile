# Two commands, from a fresh clone:
#
#     make demo     set everything up in .venv, then run the whole confidential workflow
#     make test     set up what tests need as well, then check and test everything
#
# They need python3 (3.10 or newer), python3-venv, git and make; no compiler, no root, no SGX.
# Set-up is done once: it is repeated only when pyproject.toml or requirements/ change.
#
# Variables, as in `make demo PYTHON=python3.12`:
#   PYTHON       the Python that makes the virtual environment
#   VENV         where it goes
#   TORCH_INDEX  one more package index. PyPI's PyTorch brings gigabytes of CUDA packages;
#                https://download.pytorch.org/whl/cpu has it without them
#   JOBS         tests at a time
#   ARGS         more arguments for the command that the target runs

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
WHEELS := $(PIP_INSTALL) --only-binary=:all: $(addprefix --extra-index-url ,$(TORCH_INDEX))

# A file for each completed step. They lie in the virtual environment, so they vanish with it.
BASE := $(VENV)/.ready-base
DEMO := $(VENV)/.ready-demo
FRAMEWORKS := $(VENV)/.ready-frameworks
TENSORFLOW := $(VENV)/.ready-tensorflow
TEST := $(VENV)/.ready-test
FUZZ := $(VENV)/.ready-fuzz

# The examples that common.mk runs; the first, of PyTorch, has `make demo`.
DEMOS := $(patsubst examples/%/prepare.py,%,$(wildcard examples/*/prepare.py))

.DELETE_ON_ERROR:
.PHONY: help demo test test-long fuzz lint docs bench clean distclean

help:
	@echo 'make demo       run the whole confidential workflow (sets everything up first)'
	@echo 'make demo-NAME  the same for examples/NAME: $(sort $(DEMOS))'
	@echo 'make test       check and test everything that takes seconds or a few minutes'
	@echo 'make test-long  run the tests that take longer'
	@echo 'make fuzz       give every parser broken input, a minute each (ARGS="--seconds N TARGET")'
	@echo 'make lint       ruff and mypy only'
	@echo 'make docs       build the documentation site in build/site'
	@echo 'make bench      measure whole programs natively, in direct mode and in an enclave'
	@echo 'make clean      remove caches and built manifests; make distclean also $(VENV)'

demo: $(DEMO)
	@$(BIN)/cloister demo $(ARGS)

demo-tensorflow: $(TENSORFLOW)
demo-%: $(FRAMEWORKS)
	@$(MAKE) --no-print-directory -C examples/$* demo

test: lint
	@echo '==> tests'
	@$(BIN)/python -m pytest -n $(JOBS) -m 'not long' $(ARGS)

test-long: $(TEST) $(TENSORFLOW)
	@$(BIN)/python -m pytest -m long $(ARGS)

fuzz: $(FUZZ)
	@PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

lint: $(TEST)
	@echo '==> ruff'
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo '==> mypy'
	@$(BIN)/mypy
	@for example in $(sort $(dir $(wildcard examples/*/*.py))); do \
		(cd $$example && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml \
			--cache-dir ../../.mypy_cache *.py) || exit 1; \
	done

docs: $(TEST)
	@$(BIN)/python docs/reference.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo 'build/site/index.html'

bench: $(DEMO)
	@$(BIN)/python benchmarks/runtime.py $(ARGS)

clean:
	@for example in $(dir $(wildcard examples/*/Makefile)); do \
		$(MAKE) --no-print-directory -C $$example clean; \
	done
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	@find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)

define TOO_OLD
error: $(PYTHON) is missing or older than Python 3.10
hint: install a newer one and name it: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.11
endef

define NO_VENV
error: $(PYTHON) cannot make virtual environments
hint: sudo apt install python3-venv
endef

export TOO_OLD NO_VENV

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
		|| { echo "$$TOO_OLD" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$$NO_VENV" >&2; exit 1; }
	@echo "==> virtual environment in $(VENV), with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)

$(BASE): requirements/base.txt pyproject.toml | $(BIN)/pip
	@echo '==> Cloister and the packages it needs'
	@$(WHEELS) -r requirements/base.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q src/cloister  # as pip does for what is not editable
	@touch $@

$(DEMO): requirements/demo.txt $(BASE)
	@echo '==> PyTorch and the pretrained model (large: several minutes on a slow network)'
	@$(WHEELS) -r requirements/demo.txt
	@touch $@

$(FRAMEWORKS): requirements/frameworks.txt $(DEMO)
	@echo '==> the frameworks of the other examples (about 800 MB)'
	@$(WHEELS) -r requirements/frameworks.txt
	@touch $@

$(TENSORFLOW): requirements/tensorflow.txt $(FRAMEWORKS)
	@echo '==> TensorFlow (1.4 GB)'
	@$(WHEELS) -r requirements/tensorflow.txt
	@touch $@

$(TEST): requirements/test.txt $(FRAMEWORKS)
	@echo '==> packages for tests'
	@$(WHEELS) -r requirements/test.txt
	@$(BIN)/python -m pip check --disable-pip-version-check >/dev/null || $(BIN)/python -m pip check
	@touch $@

$(FUZZ): requirements/fuzz.txt $(TEST)
	@echo '==> packages for fuzzing'
	@$(WHEELS) -r requirements/fuzz.txt
	@touch $@
