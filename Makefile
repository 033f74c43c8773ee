# `make` lists the targets. Variables: PYTHON (which interpreter .venv is made with), PIP_FLAGS (extra options for pip install).

PYTHON ?= python3
PIP_FLAGS ?=

VENV := .venv
STAMP := $(VENV)/.stamp
INSTALL := $(VENV)/bin/python -m pip install -q --disable-pip-version-check $(PIP_FLAGS)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# The tools start each other by name (torchx starts python), so .venv comes first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-docker test-slurm test-nodes test-spark test-s3 test-stores wheels lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with the pinned CPU stack and this package, editable

$(STAMP): $(addprefix requirements/,common.txt cpu.txt dev.txt nodeps.txt) pyproject.toml
	@for candidate in "$(PYTHON)" python3.11 python3.12 python3.10; do \
	    "$$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && break; \
	    candidate=; \
	done; \
	if [ -z "$$candidate" ]; then \
	    echo "error: no Python 3.10, 3.11 or 3.12 found; name one with make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "Installing the pinned stack into $(VENV) with $$("$$candidate" --version) (once, minutes; 2 to 5 GB on disk) ..."; \
	"$$candidate" -m venv $(VENV)
	@$(INSTALL) -r requirements/cpu.txt -r requirements/dev.txt
	@$(INSTALL) --no-deps --no-build-isolation -r requirements/nodeps.txt -e .
	@touch $@
	@echo "Installed. Activate it with: source $(VENV)/bin/activate"

demo: setup ## The main job: make events, prepare them, train two models on two ranks, print the table and five scores (minutes)
	rm -rf demo
	mkdir demo
	recmtl synth merrec demo/raw --events 300000 --seed 0
	recmtl prepare merrec demo/raw demo/data
	$(call TRAIN,mmoe)
	$(call TRAIN,shared_bottom)
	recmtl evaluate demo/runs/mmoe --data demo/data --split test
	recmtl evaluate demo/runs/shared_bottom --data demo/data --split test
	recmtl report demo/runs/* --out demo/report
	recmtl export demo/runs/mmoe demo/export
	recmtl predict demo/export demo/raw demo/predictions --keep user_id,product_id,is_like
	python -c "import duckdb; print(duckdb.sql(\"from 'demo/predictions/*.parquet' order by p_like desc limit 5\"))"

TRAIN = torchx --log_level WARNING run -s local_cwd components/train.py:ddp --name $(1) --ranks 2 -- $(1) --data demo/data --run demo/runs/$(1)

test: setup ## The fast tests, two at a time
	pytest -n 2 -m "not slow"

test-slow: setup ## The tests that take minutes
	pytest -m slow

test-docker: setup ## As root: start a Docker daemon, build the image, run jobs in it (minutes, 5 GB)
	pytest -m docker -rs

test-slurm: setup ## As root: start a Slurm cluster of two nodes, run jobs on it
	pytest -m slurm -rs

test-nodes: setup ## As root: one job across two network namespaces
	pytest -m netns -rs

test-spark: setup ## Start a Spark cluster, prepare data on it (minutes; needs Java 17, installs PySpark)
	$(INSTALL) -r requirements/spark.txt
	pytest -m spark -rs

test-s3: setup ## Start an S3 server, prepare, train and predict on it while it fails (minutes; installs s3fs and moto)
	$(INSTALL) -r requirements/stores.txt
	pytest -m stores -rs -k s3

test-stores: setup ## The same on servers of S3, Google's and Azure's stores (half an hour; needs npm)
	$(INSTALL) -r requirements/stores.txt
	npm install --global --silent --no-audit --no-fund --prefix $(VENV) azurite@3.37.0 || echo "no Azurite: abfs:// is skipped" >&2
	pytest -m stores -rs

wheels: setup ## Download the image's packages to requirements/wheels, for a build that reaches no index
	python -m pip download -q --no-deps -d requirements/wheels $(PIP_FLAGS) -r requirements/cpu.txt -r requirements/nodeps.txt

lint: setup ## Check style, types and who imports whom
	ruff check
	ruff format --check
	lint-imports
	mypy

format: setup ## Rewrite the code in the project's style
	ruff check --fix
	ruff format

clean: ## Remove what the other targets made, except .venv
	rm -rf demo build dist *.egg-info .pytest_cache .import_linter_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
