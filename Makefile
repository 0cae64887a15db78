# Targets for people: demo, test, test-all, test-fast, lint, bench. Each sets up what it needs first, and again only when
# the files that it was made from have changed.

PYTHON ?= python3.11
PROCESSES ?= 6
# What the demo plays: CONTRACT=vendor, or a file.
CONTRACT ?= cabinet_repair
VENV := .venv
BIN := $(VENV)/bin
TYPECHECK := build/typecheck

# The jars' folder, as local/services/artifacts.py has it.
export ITEL_CABINET_LOCAL ?= $(CURDIR)/.local

PACKAGES := $(VENV)/.packages-installed
JARS := $(ITEL_CABINET_LOCAL)/.jars-fetched
FLINK := $(ITEL_CABINET_LOCAL)/.flink-fetched
AZURITE := $(ITEL_CABINET_LOCAL)/.azurite-fetched
PROMETHEUS := $(ITEL_CABINET_LOCAL)/.prometheus-fetched
TOXIPROXY := $(ITEL_CABINET_LOCAL)/.toxiproxy-fetched
# Programs for the tests, each a Debian package of its own name.
DEBIAN := chromium curl jq

# What is fetched and built waits for the network as much as it computes.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += --jobs=4
endif

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests demo demo-flink test test-all test-fast chaos lint types bench clean

help:
	@echo "make demo       run the whole system on this machine and show where each record ended"
	@echo "make demo-flink the same on a Flink cluster, and how long each part takes"
	@echo "make test       lint, then every test but those that repeat another under other circumstances"
	@echo "make test-all   lint, then those too"
	@echo "make test-fast  the tests that need no services"
	@echo "make chaos      60,000 events through a Flink cluster whose parts are killed; half an hour"
	@echo "make lint       ruff and mypy"
	@echo "make bench      throughput and latency, beside plain loops and on Flink"
	@echo "make clean      remove what the above have made, the downloads too"

demo: setup
	$(BIN)/python -m itel_cabinet.local.demo --contract=$(CONTRACT)

demo-flink: setup $(FLINK)
	$(BIN)/python -m itel_cabinet.local.demo --flink --contract=$(CONTRACT)

# Jobs, brokers and clusters start and wait as much as they compute, so more processes than cores share the tests out.
# The longest come first (tests/conftest.py), in that order.
PYTEST_TOGETHER := $(BIN)/python -m pytest -n $(PROCESSES) --no-loadscope-reorder --durations=30

test: setup-tests lint
	$(PYTEST_TOGETHER) -m "not slow and not chaos"

test-all: setup-tests lint
	$(PYTEST_TOGETHER) -m "not chaos"

test-fast: $(PACKAGES)
	$(PYTEST_TOGETHER) -m "not services and not flink"

chaos: setup $(FLINK)
	$(BIN)/python -m pytest -m chaos -s

lint: $(PACKAGES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types

# No folder is named itel_cabinet, so types are checked on an installed copy. Old build folders go first: setuptools
# would put modules that exist no more into the copy.
types: $(PACKAGES)
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(TYPECHECK) . ./local
	cd $(TYPECHECK) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	    --cache-dir $(CURDIR)/.mypy_cache --python-executable $(CURDIR)/$(BIN)/python -p itel_cabinet

bench: setup $(FLINK)
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) $(ITEL_CABINET_LOCAL) build dist demo-output *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

setup: $(PACKAGES) $(JARS)

setup-tests: setup $(FLINK) $(AZURITE) $(PROMETHEUS) $(TOXIPROXY)
	@tests/support/debian.sh $(DEBIAN)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' \
	    || { echo "no Python 3.11 to 3.14: install one, or say which it is with make PYTHON=PATH" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(PACKAGES): constraints.txt pyproject.toml setup.py local/pyproject.toml | $(BIN)/python
	@echo "fetching the Python packages of constraints.txt into $(VENV)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]' -e ./local \
	    || { echo "could not fetch the Python packages of constraints.txt: see pip's lines above" >&2; exit 1; }
	@touch $@

$(JARS): local/services/pom.xml local/services/artifacts.py $(PACKAGES)
	@$(BIN)/python -m itel_cabinet.local.services
	@touch $@

# Some 150 MB of jars, and Beam's boot and Prism built with Go: fetched for what runs on Flink, not for the demo. After
# the other jars, since Maven's repository bears one writer.
$(FLINK): local/services/flink-pom.xml local/services/NothingToStage.java local/services/artifacts.py $(JARS)
	@$(BIN)/python -m itel_cabinet.local.services flink
	@touch $@

# Some 370 MB of Node.js modules, an object store like Azure's: for the tests too.
$(AZURITE): local/services/npm/package-lock.json local/services/artifacts.py $(PACKAGES)
	@$(BIN)/python -m itel_cabinet.local.services azurite
	@touch $@

# Debian's package, some 20 MB, unpacked and not installed: for the tests and the benchmarks.
$(PROMETHEUS): local/services/artifacts.py $(PACKAGES)
	@$(BIN)/python -m itel_cabinet.local.services prometheus
	@touch $@

# Built with Go, a minute on a slow machine: for the tests.
$(TOXIPROXY): local/services/artifacts.py $(PACKAGES)
	@$(BIN)/python -m itel_cabinet.local.services toxiproxy
	@touch $@
