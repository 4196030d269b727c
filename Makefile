# Every target installs what it needs into .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart test unit conformance cluster bench lint protos clean

help:
	@echo "make quickstart   see a volume rotate, without Kubernetes"
	@echo "make test         unit and node tests (node tests want root or user namespaces)"
	@echo "make conformance  clients and suites that others wrote (Go is needed)"
	@echo "make cluster      a pod on a real kubelet, brought up on this host (root, Go)"
	@echo "make bench | lint | protos | clean"

# Debian splits venv off python3; root gets it installed, others are told.
$(VENV)/bin/pip:
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	  rm -rf $(VENV); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing python3-venv"; apt-get update -q >/dev/null && apt-get install -y -q python3-venv >/dev/null && $(PYTHON) -m venv $(VENV); \
	  else \
	    echo "python3 -m venv does not work here; on Debian or Ubuntu run: sudo apt-get install python3-venv" >&2; exit 1; \
	  fi; }

$(VENV)/.run: pyproject.toml $(VENV)/bin/pip
	@echo "installing podsvid into $(VENV)"
	@$(BIN)/pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@echo "installing what the tests need"
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "installing the linters"
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

quickstart: $(VENV)/.run
	$(BIN)/podsvid quickstart

test: $(VENV)/.test
	$(BIN)/python -m pytest

unit: $(VENV)/.test
	$(BIN)/python -m pytest tests/unit

conformance: $(VENV)/.test
	$(BIN)/python -m pytest tests/conformance

cluster: $(VENV)/.test
	$(BIN)/python -m pytest tests/cluster -s

bench: $(VENV)/.test
	$(BIN)/python -m bench
	$(BIN)/python -m bench.signer

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

protos: $(VENV)/.test
	$(BIN)/python proto/generate.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
