# `make test` and `make bench` do their own set-up. This file owns $(VENV): it is made, renewed and removed here.

PYTHON ?= python3
VENV := .venv
ARGS :=

BIN := $(VENV)/bin
MADE := $(VENV)/.made
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

# A user's pip settings may ask for --user installs, which a virtual environment refuses.
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What $(MADE) should hold. It differs when this folder was moved (the scripts in a virtual environment hold its path),
# when the interpreter is gone, or when PYTHON names another version; a PYTHON that was not named accepts any.
INTERPRETER := $(if $(filter file,$(origin PYTHON)),$(BIN)/python,$(PYTHON))
VERSION_OF = "$(1)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
STATE := $(shell $(call VERSION_OF,$(INTERPRETER))) $(CURDIR)
FOUND := $(shell cat "$(MADE)" 2>/dev/null)

# What the project's own regression job measures, and what it may move: see CONTRIBUTING.md.
BASELINE := benchmarks/results/baseline
BASELINE_RUN := --model tiny --dataset embedded --attack "pgd-10,apgd-ce(iterations=10)" --eps 1,4 --n-samples 50
COMPARE = $(BIN)/clipguard --quiet compare --max-drop 4 --fail-on any-drop

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help bench benchmarks test invariance lint format build docs pictures regression baseline clean FORCE

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo
	@echo '  ARGS="..."           more arguments for `clipguard bench` or pytest'
	@echo '  PYTHON=python3.12    the Python to make $(VENV) with (3.10 or newer)'

bench: $(INSTALLED) ## set up, then benchmark the embedded model: robust accuracy on the embedded data sets
	$(BIN)/clipguard bench --n-samples 20 $(ARGS)

test: $(INSTALLED_DEV) ## set up, then run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Kernels that libraries would choose on other processors.
KERNELS := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
INVARIANCE := tests/models/test_cosine.py tests/attacks/test_attack_invariance.py tests/benchmark/test_invariance.py \
  tests/store/test_store.py -k "cosine or invariance or new_is_computed or one_after_the_other or goes_on"

invariance: $(INSTALLED_DEV) ## the tests of rounding in batches, with the kernels of other processors
	set -e; for kernel in $(KERNELS); do \
	  echo "$$kernel"; env OMP_NUM_THREADS=1 "$$kernel" $(BIN)/python -m pytest -n 2 $(INVARIANCE); done

lint: $(INSTALLED_DEV) ## ruff check, ruff format --check, mypy, and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED_DEV) ## let ruff format the code and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

build: $(INSTALLED_DEV) ## sdist and wheel in dist/
	rm -rf dist
	$(BIN)/python -m build

docs: $(INSTALLED_DEV) ## the docs site in site/; ARGS=serve shows it at localhost
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(ARGS),build)

pictures: $(INSTALLED_DEV) ## draw docs/images anew, from runs in build/pictures (an hour without them; needs Chromium)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/pictures.py

benchmarks: $(INSTALLED) ## measure anew what benchmarks/README.md shows (hours; ARGS=--list says which)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run_all.py $(ARGS)

regression: $(INSTALLED) ## fail if the embedded model got less accurate than the committed baseline, or its attacks weaker
	rm -rf build/regression
	$(BIN)/clipguard --quiet bench $(BASELINE_RUN) --no-store --format md --out build/regression > /dev/null
	$(COMPARE) $(BASELINE) build/regression
	@echo 'The other way round: accuracy that rises under attack is an attack that got weaker.'
	$(COMPARE) build/regression $(BASELINE)

baseline: $(INSTALLED) ## measure that baseline anew (read what changed before you commit it)
	rm -rf build/baseline
	$(BIN)/clipguard bench $(BASELINE_RUN) --no-store --out build/baseline
	mkdir -p $(BASELINE)
	cp build/baseline/samples.parquet $(BASELINE)
	sed 's|$(CURDIR)/||' build/baseline/results.json > $(BASELINE)/results.json  # no paths of this machine

clean: ## remove builds, caches and the virtual environment (results in runs/ stay)
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find clipguard tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
	if test -e "$(VENV)/pyvenv.cfg"; then rm -rf "$(VENV)"; fi

# Stamps are written last, so an interrupted set-up starts over.
ifneq ($(strip $(FOUND)),$(strip $(STATE)))
$(MADE): FORCE
endif
$(MADE):
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo 'clipguard needs Python 3.10 or newer, and there is no $(PYTHON); try PYTHON=python3.12' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  version=$$($(call VERSION_OF,$(PYTHON))); \
	  echo "clipguard needs Python 3.10 or newer, and $(PYTHON) is $$version; try PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  version=$$($(call VERSION_OF,$(PYTHON))); \
	  echo "$(PYTHON) cannot make environments: apt install python3-venv (or python$$version-venv)" >&2; exit 1; }
	@test ! -e "$(VENV)" || test -e "$(VENV)/pyvenv.cfg" || { \
	  echo '$(VENV) is not a virtual environment and will not be replaced; try VENV=another-folder' >&2; exit 1; }
	"$(PYTHON)" -m venv --clear "$(VENV)"
	@echo "$$($(call VERSION_OF,$(BIN)/python)) $(CURDIR)" > $@

$(INSTALLED): $(MADE) pyproject.toml
	$(BIN)/python -m pip install --editable .
	@touch $@

# What the tests need includes what the benchmark needs.
$(INSTALLED_DEV): $(MADE) pyproject.toml
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $(INSTALLED) $@
