# `make` lists the targets. Variables: PYTHON (which interpreter .venv is made with), PIP_FLAGS (extra options for pip install).

PYTHON ?= python3
PIP_FLAGS ?=

VENV := .venv
STAMP := $(VENV)/.stamp
INSTALL := $(VENV)/bin/python -m pip install -q --disable-pip-version-check $(PIP_FLAGS)

# The tools start each other by name (torchx starts python), so .venv comes first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with the pinned CPU stack and this package, editable

$(STAMP): requirements/cpu.txt requirements/cpu-nodeps.txt requirements/dev.txt pyproject.toml
	@for candidate in "$(PYTHON)" python3.11 python3.12 python3.10; do \
	    "$$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && break; \
	    candidate=; \
	done; \
	if [ -z "$$candidate" ]; then \
	    echo "error: no Python 3.10, 3.11 or 3.12 found; name one with make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	echo "Installing the CPU stack into $(VENV) with $$("$$candidate" --version) (about 1 GB, once) ..."; \
	"$$candidate" -m venv $(VENV)
	@$(INSTALL) -r requirements/cpu.txt -r requirements/dev.txt
	@$(INSTALL) --no-deps --no-build-isolation -r requirements/cpu-nodeps.txt -e .
	@touch $@
	@echo "Installed. Activate it with: source $(VENV)/bin/activate"
