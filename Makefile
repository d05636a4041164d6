# Each target calls one tool, set up as bin/test sets it up. `make` lists them.
SHELL := bash
TOOLS := .venv/bin
ARGS ?=
SEEDS ?= 2000
MINUTES ?= 5

.PHONY: help setup fmt lint types layers docs test soak fuzz bench screenshot demo audit lock
.DEFAULT_GOAL := help

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## Make or refresh .venv
	@bin/setup --test

fmt: setup ## Format the code and sort the imports
	$(TOOLS)/ruff check --quiet --fix --select I . && $(TOOLS)/ruff format .

lint: setup ## Find what is wrong with the code by its looks
	$(TOOLS)/ruff check .

types: setup ## Check the types
	$(TOOLS)/mypy --strict -p dstash

layers: setup ## Check that imports point down
	$(TOOLS)/lint-imports --no-logo

docs: setup ## Make docs/api.md, docs/cli.md and docs/cli-json.md anew
	$(TOOLS)/python -m tests.documents

test: ## Run everything that must pass; ARGS go to pytest
	bin/test $(ARGS)

soak: setup ## Run the simulation, and faults and changes of real peers, for long: SEEDS=2000
	$(TOOLS)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)
	SOAK=10 $(TOOLS)/pytest --timeout=0 tests/integration/test_scaling.py \
		tests/integration/test_invariants.py tests/integration/test_disks.py tests/security

fuzz: setup ## Throw garbage at the codec and at peers for a long time; MINUTES=5 guided by coverage
	$(TOOLS)/python -m tests.fuzz $(ARGS)
	test -d .cache/atheris || $(TOOLS)/pip install --quiet --require-hashes --no-deps \
		--target .cache/atheris -r tests/fuzz/requirements.txt
	mkdir -p .cache/corpus
	PYTHONPATH=.cache/atheris $(TOOLS)/python -m tests.fuzz.guided \
		-max_total_time=$$(($(MINUTES) * 60)) -artifact_prefix=.cache/ .cache/corpus

bench: setup ## Measure beside Redis, memcached, etcd and raw limits; ARGS="--full --save" writes docs/benchmarks.md
	$(TOOLS)/python -m bench $(ARGS)

screenshot: setup ## Make the picture of the dashboard again, in some six minutes
	$(TOOLS)/python -m tests.screenshot $(ARGS)

demo: ## Show the main job on real data; ARGS="--consul --keep"
	bin/demo $(ARGS)

audit: setup ## Look for known holes in what is pinned, and for dangerous calls in the code
	$(TOOLS)/ruff check --select S,TID251 dstash examples bin/get-consul
	$(TOOLS)/pip-audit --require-hashes --disable-pip -r requirements/run.txt -r requirements/test.txt

lock: ## Pin the requirements again; ARGS=--upgrade takes the newest of all
	bin/lock $(ARGS)
