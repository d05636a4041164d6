# Each target calls one tool, set up as bin/test sets it up. `make` lists them.
SHELL := bash
TOOLS := .venv/bin
ARGS ?=
SEEDS ?= 2000
MINUTES ?= 5

.PHONY: help setup fmt lint types layers docs site fast test lowest interpreters coverage release image soak fuzz bench screenshot demo audit lock
.DEFAULT_GOAL := help

FAST := tests/wire tests/store tests/cluster/topology tests/test_config.py tests/test_errors.py \
	tests/test_version.py tests/documents/test_paths.py
# Property tests that take seconds each.
SLOW := not TestStoreAgainstTwin and not TestAgain and not TestThousand and not bombs and not test_unsynced and not test_compaction
COVERED := tests/wire tests/store tests/cluster tests/client tests/peer tests/backup tests/cli tests/simulation

# An environment of its own for tools that the tests do not need.
tool = test -x .cache/$(1)-tools/bin/pip || python3 -m venv .cache/$(1)-tools; \
	.cache/$(1)-tools/bin/pip install --quiet --require-hashes -r requirements/$(1).txt

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## Make or refresh .venv
	@bin/setup --test

fmt: setup ## Format the code, sort the imports
	$(TOOLS)/ruff check --quiet --fix --select I . && $(TOOLS)/ruff format .

lint: setup ## Lint the code
	$(TOOLS)/ruff check .

types: setup ## Check the types
	$(TOOLS)/mypy --strict -p dstash -p bench

layers: setup ## Check the layers of the imports
	$(TOOLS)/lint-imports --no-logo

docs: setup ## Generate docs/api.md, docs/cli.md and docs/cli-json.md from the code
	$(TOOLS)/python -m tests.documents

site: ## Build the documentation site in build/site; a broken link is an error
	$(call tool,site)
	.cache/site-tools/bin/python -m tests.documents.site
	.cache/site-tools/bin/mkdocs build --quiet --clean --strict

fast: setup ## Run the fast tests: the units that need no process and no cluster
	$(TOOLS)/pytest -q --numprocesses 2 --dist worksteal -k "$(SLOW)" $(FAST) $(ARGS)

test: ## Run everything that must pass; ARGS go to pytest
	bin/test $(ARGS)

lowest: ## Run fast tests with the lowest versions of the dependencies that pyproject.toml allows
	bin/test-lowest $(ARGS)

interpreters: ## Run the fast tests under every python3.11 to python3.14 on PATH
	@for python in $$(compgen -c | grep -xE 'python3\.1[1-4]' | sort -u); do \
		echo "== $$python" >&2; \
		test -x .cache/$$python/bin/python || $$python -m venv .cache/$$python || exit 1; \
		.cache/$$python/bin/pip install --quiet --disable-pip-version-check --require-hashes \
			-r requirements/build.txt -r requirements/run.txt -r requirements/test.txt && \
		.cache/$$python/bin/pip install --quiet --no-deps --no-build-isolation --editable . && \
		.cache/$$python/bin/pytest -q --numprocesses 2 --dist worksteal -k "$(SLOW)" $(FAST) $(ARGS) \
			|| exit 1; \
	done

coverage: setup ## Print which lines and branches the tests of this process run; ARGS are folders
	$(TOOLS)/python -m pytest -q --numprocesses 2 --dist worksteal -p tests.harness.covering --table \
		$(or $(ARGS),$(COVERED)) --covered $(or $(ARGS),$(COVERED))

release: ## Build the sdist, check it, and start a cluster from it
	$(call tool,release)
	bin/release

image: ## Build the image and run compose.yaml with podman, as root: start, kill, recreation, stop
	bin/test-image $(ARGS)

soak: setup ## Run the simulation, and the fault tests of real peers, for hours: SEEDS=2000
	$(TOOLS)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)
	SOAK=10 $(TOOLS)/pytest --timeout=0 tests/integration/test_scaling.py \
		tests/integration/test_invariants.py tests/integration/test_disks.py tests/security

fuzz: setup ## Send mutated messages to the codec and to peers; MINUTES=5 guided by coverage
	$(TOOLS)/python -m tests.fuzz $(ARGS)
	test -d .cache/atheris || $(TOOLS)/pip install --quiet --require-hashes --no-deps \
		--target .cache/atheris -r tests/fuzz/requirements.txt
	mkdir -p .cache/corpus
	PYTHONPATH=.cache/atheris $(TOOLS)/python -m tests.fuzz.guided \
		-max_total_time=$$(($(MINUTES) * 60)) -artifact_prefix=.cache/ .cache/corpus

bench: setup ## Compare with Redis, memcached, etcd and raw limits; ARGS="--full --save" writes docs/benchmarks.md
	$(TOOLS)/python -m bench $(ARGS)

screenshot: setup ## Take the picture of the dashboard again, in about six minutes
	$(TOOLS)/python -m tests.screenshot $(ARGS)

demo: ## Show the main job on real data; ARGS="--consul --keep"
	bin/demo $(ARGS)

audit: setup ## Check pinned packages for known vulnerabilities, and the code for dangerous calls
	$(TOOLS)/ruff check --select S,TID251 dstash examples bin/get-consul
	$(TOOLS)/pip-audit --require-hashes --disable-pip -r requirements/run.txt -r requirements/test.txt

lock: ## Pin the requirements again; ARGS=--upgrade takes the newest versions
	bin/lock $(ARGS)
