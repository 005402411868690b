# Every target sets up .venv first, when its lock file has changed: see tools/environment.py.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo run quick test check words fix chaos bench docs dist lock clean runtime dev

help: ## show this list
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 16

demo: runtime ## run the main job end to end on a throw-away SQLite file
	@$(BIN)/tenure demo

run: runtime ## serve dashboard, API and fake handlers on port 8080 until Ctrl-C
	@$(BIN)/tenure serve --fake-handlers

quick: dev ## run the unit and contract tests on SQLite, in under a minute
	$(BIN)/pytest -n 2 -m "not postgres and not slow" tests/unit tests/contract

# Many tests wait for a lease, a timeout or a process: on two cores four more processes use it.
# Neighbours stay together (worksteal), so that what a module sets up is seldom set up twice.
test: dev ## run every test, on real SQLite files and a real PostgreSQL
	$(BIN)/pytest -n 6 --dist worksteal

check: dev ## formatting, lint, import rules, types, words, size of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python tools/words.py
	$(BIN)/python tools/house.py --check

words: dev ## words that the project does not use (ARGS="src/tenure/store docs")
	@$(BIN)/python tools/words.py $(ARGS)

fix: dev ## format, and repair what lint can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: dev ## the whole battery of faults, in 10 minutes (ARGS="--seconds 3600 --seed 7")
	$(BIN)/python -m tests.chaos.run $(ARGS)

bench: dev ## Tenure and its strongest peers measured side by side, in 3 minutes
	$(BIN)/python bench/run.py quick

docs: dev ## build the documentation as a web site, in site/
	@$(BIN)/python tools/site.py

dist: dev ## build what a release publishes, in dist/, and try it out
	@$(BIN)/python tools/release.py

lock: dev ## pin the newest versions that pyproject.toml and requirements-dev.in allow
	$(COMPILE) pyproject.toml --extra standard --group build --output-file requirements.txt
	$(COMPILE) pyproject.toml --all-extras --group build requirements-dev.in \
		--constraint requirements.txt --output-file requirements-dev.txt
	$(COMPILE) pyproject.toml --extra standard --extra postgres --extra client --group build \
		--constraint requirements-dev.txt --output-file deploy/requirements.txt
	echo uv | $(COMPILE) - --output-file tools/uv.txt

COMPILE := $(BIN)/uv pip compile --quiet --system-certs --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-annotate --no-header

clean: ## remove the environment and the caches of tools
	rm -rf .venv .bench site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

runtime dev:
	@$(PYTHON) tools/environment.py $@
