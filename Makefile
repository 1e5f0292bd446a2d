# `make demo` and `make test` do everything on a fresh machine; both install first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo test lint docs bench soak
help: ## show this
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: .venv/installed ## create .venv with the package and all extras
.venv/installed: .venv/plain
	$(BIN)/python -m pip install --quiet -e '.[dev,oracles,cluster]'
	touch $@

# What a run needs, and nothing that tests compare with.
.venv/plain: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

demo: .venv/plain ## run the benchmark on the bundled model and data set; ends with a leaderboard
	$(BIN)/xaibench run experiment=demo

test: install lint ## the regression gate on the committed baseline, then the test suite
	rm -rf build/baseline  # a gate computes anew: a cache would answer for code that is no more
	$(BIN)/xaibench run experiment=baseline paths.cache=build/baseline/cache paths.results=build/baseline/results
	$(BIN)/xaibench check --baseline results/baseline.csv --results build/baseline/results
	$(BIN)/python -m pytest -n 2

lint: install ## style, formatting, the order of the rooms, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

bench: install ## time of metrics over the bare forward passes they need
	$(BIN)/python scripts/bench.py

soak: install ## kill a run at 20 random moments and resume it
	$(BIN)/python scripts/crash_soak.py

docs: install ## the documentation as a site, build/docs/html/index.html; needs no network
	$(BIN)/python docs/build.py build/docs
