# Everything needs only make, Python 3.11 or later and a package index: no root, no Docker, no Redis.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Touched when what it names is installed, so that a second run has nothing to do.
RUNTIME := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
CLOUDS := $(VENV)/.installed-clouds
# Where a Python is looked for; `make install PYTHON=/path/to/python3` names one.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11 python
COMPILE = uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
  --python-version 3.11 $(ARGS)
EXTRAS := --extra worker --extra sandbox --extra gateway --extra s3
# Modules that write committed files.
GENERATORS := settings_table metrics_table monitoring.dashboard k8s.prometheus_rule contract
PYTEST = $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
# More for pytest: `make test ARGS="-k budget"`.
ARGS ?=

# Bytecode is kept, whoever says otherwise: the tests start hundreds of processes, each of which would compile the code.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo up test test-long test-crash chaos clouds-test node-test k8s-test image-test check generated bench lock clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(RUNTIME) ## Set up .venv with all that the service needs.
	@echo "Installed in $(VENV)."

demo: $(RUNTIME) ## Run one fine-tune from images to verified weights, on this machine and at no cost.
	@$(BIN)/finetune demo

up: $(RUNTIME) ## Start Valkey, the sandbox, a worker, Flower and the HTTP gateway, until Ctrl-C.
	@$(BIN)/python -m finetune_queue.local

test: $(DEV) ## Run the tests. ARGS="-k word" chooses some.
	$(PYTEST) $(ARGS)

test-long: $(DEV) ## Run those that kill, overload or replace whole systems; takes some two minutes.
	$(PYTEST) -m long $(ARGS)

test-crash: $(DEV) ## Kill a worker at every single call and in every way, try hundreds of histories; takes many minutes.
	FAULTS=all EXAMPLES=500 $(BIN)/python -m pytest -m "not node" tests/faults tests/store/test_budget_in_any_order.py $(ARGS)

chaos: $(RUNTIME) ## Let everything go wrong at once, and judge what came of it; ARGS="--seed 7 --minutes 10".
	@PYTHONPATH=ops/chaos $(BIN)/python -m finetune_chaos $(ARGS)

clouds-test: $(CLOUDS) ## Hold gs:// and az:// to what s3:// is held to, on emulators; needs npm, and takes a minute.
	CLOUDS="gs az" $(BIN)/python -m pytest tests/storage $(ARGS)

node-test: $(DEV) ## Run the samples that are written for Node; needs node.
	@command -v node >/dev/null || { echo "make node-test needs node (https://nodejs.org)."; exit 1; }
	$(BIN)/python -m pytest tests/contract -m node $(ARGS)

k8s-test: $(DEV) ## Render the Kubernetes manifests and check them; needs kubectl or kustomize.
	@command -v kubectl >/dev/null || command -v kustomize >/dev/null || \
	  { echo "make k8s-test needs kubectl or kustomize (https://kubernetes.io/docs/tasks/tools)."; exit 1; }
	$(BIN)/python -m pytest tests/k8s $(ARGS)

image-test: $(DEV) ## Build all images and run a job through them; needs root and buildah, and takes some minutes.
	$(BIN)/python -m pytest docker $(ARGS)

check: $(DEV) ## Check style, types, layers and generated files.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@set -e; for module in $(GENERATORS); do $(BIN)/python -m ops.$$module --check; done

generated: $(DEV) ## Write the tables, schemas and manifests that are made from the code anew.
	@set -e; for module in $(GENERATORS); do $(BIN)/python -m ops.$$module; done

bench: $(RUNTIME) ## Measure it beside other workers, for over an hour; ARGS=--quick takes minutes.
	PYTHONPATH=$(CURDIR)/ops/bench $(BIN)/python -m finetune_bench $(ARGS)

# Tracing has a lock file of its own: where OpenTelemetry's SDK is installed, redis-py loads it at every start.
# The drivers for gs:// and az:// have one too: they weigh 50 MB, and are in no image.
lock: ## Bring the lock files in line with pyproject.toml; ARGS=--upgrade takes newer versions (needs uv).
	@command -v uv >/dev/null || { echo "make lock needs uv (https://docs.astral.sh/uv/)."; exit 1; }
	$(COMPILE) $(EXTRAS) --group build pyproject.toml -o requirements.lock
	$(COMPILE) --extra otel -c requirements.lock pyproject.toml -o requirements-otel.lock
	$(COMPILE) $(EXTRAS) --extra otel --group dev -c requirements.lock -c requirements-otel.lock pyproject.toml -o requirements-dev.lock
	$(COMPILE) --extra gs --extra az --group clouds -c requirements-dev.lock pyproject.toml -o requirements-clouds.lock

clean: ## Remove .venv, var/ and all caches.
	rm -rf $(VENV) var build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(PYTHON); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$("$$python" --version)."; \
	    "$$python" -m venv --clear $(VENV) && exit 0; \
	    echo "This Python cannot make virtual environments (on Debian and Ubuntu: install python3-venv)."; exit 1; \
	  fi; \
	done; \
	echo "Python 3.11 or later is needed, and none was found as: $(PYTHON)."; \
	echo "Install one, or name it: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3"; \
	exit 1

$(RUNTIME): requirements.lock pyproject.toml | $(BIN)/python
	@$(PIP) --version >/dev/null || { echo "$(VENV) is incomplete. Run make clean, then this again."; exit 1; }
	@echo "Installing the packages of requirements.lock; the first time takes about a minute."
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements-dev.lock $(RUNTIME)
	@echo "Installing the tools of requirements-dev.lock."
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

$(CLOUDS): requirements-clouds.lock $(DEV)
	@command -v npm >/dev/null || { echo "make clouds-test needs npm, for Azurite (https://nodejs.org)."; exit 1; }
	@echo "Installing the drivers of requirements-clouds.lock, and Azurite."
	@$(PIP) install --require-hashes -r requirements-clouds.lock
	@npm install --silent --no-audit --no-fund --prefix $(VENV)/azurite azurite@3.35.0
	@touch $@
