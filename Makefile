# Every target installs what it needs into .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart test unit conformance cluster interop mutants bench lint docs protos manifests image clean

help:
	@echo "make quickstart   see a volume rotate, without Kubernetes"
	@echo "make test         unit and node tests (node tests want root or user namespaces)"
	@echo "make conformance  clients and suites that others wrote (Go is needed)"
	@echo "make cluster      a pod on a real kubelet, brought up on this host (root, Go)"
	@echo "make interop      peers that take long to build, as far as they are built; SUITE=spire builds one and runs it"
	@echo "make mutants      changes of the product that the tests must notice (half an hour)"
	@echo "make docs         the documentation as a site"
	@echo "make bench | lint | protos | image | manifests | clean"

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

# Building Kubernetes, which takes many minutes the first time, is no test and has no time limit.
cluster: $(VENV)/.test
	$(BIN)/python -m tests.cluster.harness build
	$(BIN)/python -m pytest tests/cluster -s

# With SUITE, that one, built first without a time limit; else those whose programs are wheels or in the cache.
interop: $(VENV)/.test
	$(BIN)/python -m tests.interop run $(or $(SUITE),--ready)

# About half an hour; not in CI.
mutants: $(VENV)/.test
	$(BIN)/python -m tests.mutants --write

bench: $(VENV)/.test
	$(BIN)/python -m bench
	$(BIN)/python -m bench.signer

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.run
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q
	@echo "open site/index.html, or run $(BIN)/mkdocs serve"

protos: $(VENV)/.test
	$(BIN)/python proto/generate.py

# What people without Helm apply; needs Helm (HELM=...).
HELM ?= helm
manifests:
	@mkdir -p deploy/manifests
	@{ cat deploy/manifests/namespace.yaml; \
	  $(HELM) template podsvid deploy/chart/podsvid --namespace podsvid --set trustDomain=example.org --no-hooks --kube-version 1.34.0; \
	} > deploy/manifests/podsvid.yaml

# The container image of this checkout; BASE is a Python image, by digest.
BUILDER ?= docker
IMAGE ?= podsvid:0.1.0
image:
	@test -n "$(BASE)" || { echo "give the base image: make image BASE=python:3.13-slim-bookworm@sha256:..." >&2; exit 2; }
	$(BUILDER) build --build-arg BASE=$(BASE) -t $(IMAGE) -f deploy/image/Containerfile .

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
