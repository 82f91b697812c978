# Every command of this checkout.  Needs Python 3.11 or newer, and make; the rest is fetched into .venv and .services.
# The work is done in tools/; this file only says what comes before what.

.DEFAULT_GOAL := help
SHELL := /bin/sh
.SUFFIXES:
MAKEFLAGS += --no-print-directory

PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
PY := .venv/bin/python
STAMP := .venv/stamp
WITH_SERVERS := set -a; [ ! -f .services/env ] || . ./.services/env; set +a;

.PHONY: help demo test services services-stop lint types bench crash outage lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

$(STAMP): constraints.txt pyproject.toml tools/environment.py
	@[ -n "$(PYTHON)" ] || { echo "duly needs Python 3.11 or newer, and none of python3, python3.13, python3.12, python3.11 is" >&2; exit 1; }
	@$(PYTHON) tools/environment.py
	@touch $@

demo: $(STAMP) ## run the main job on real data, in ./duly-demo
	@.venv/bin/duly demo

test: services ## run every test suite, each within its time budget (SUITES="unit tidy" for some)
	@$(PY) -m tools.suites $(SUITES)

services: $(STAMP) ## find, install or start the servers that tests need
	@$(PY) -m tools.services start

services-stop: ## stop those servers and remove their data
	@if [ -x $(PY) ]; then $(PY) -m tools.services stop; fi

lint: $(STAMP) ## style, import directions, house rules
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@.venv/bin/lint-imports
	@$(PY) -m pytest -q tests/tidy --ignore tests/tidy/test_own_coverage.py

types: $(STAMP) ## mypy --strict over src and tools
	@$(PY) -m mypy src/duly tools $(wildcard tests/typing)

bench: services ## measure beside the references (ONLY=word REPEATS=n), writes build/bench.json
	@$(WITH_SERVERS) $(PY) -m bench

crash: services ## kill real processes at every failpoint (KILLS=n ONLY=word PLANTED=1), writes build/crash.json
	@$(WITH_SERVERS) $(PY) -m tests.crash

outage: services ## commit while the broker is away for a minute, five times (ROUNDS THERE AWAY SLOW), writes build/outage.json
	@$(WITH_SERVERS) $(PY) -m tests.acceptance.outage

lock: $(STAMP) ## pin the newest allowed packages again, with hashes
	@$(PY) -m tools.lock

clean: services-stop ## remove everything that these commands made
	@rm -rf .venv .venv-peers .services build dist duly-demo .hypothesis .mypy_cache .ruff_cache .import_linter_cache .coverage*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
