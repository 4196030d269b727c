# Every target installs what it needs into .venv on first use, and looks for the tools that it cannot install first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart test unit conformance cluster programs interop mutants bench lint docs protos manifests image clean

help:
	@echo "make quickstart   see a volume rotate, without Kubernetes"
	@echo "make test         unit and node tests, JOBS=N at once (some minutes; node tests want root or user namespaces)"
	@echo "make lint         ruff, mypy --strict, the import rules (a minute)"
	@echo "make conformance  clients and suites that others wrote (Go; a few minutes, some more the first time)"
	@echo "make cluster      pods on a real kubelet, brought up on this host (root, Go; 15 minutes, 30 the first time)"
	@echo "make programs     builds what these two run (Go; a quarter of an hour the first time)"
	@echo "make interop      peers that take long to build, as far as they are built; SUITE=spire builds one and runs it"
	@echo "make mutants      changes of the product that the tests must notice (about an hour)"
	@echo "make bench        benchmarks, into bench/results (some minutes)"
	@echo "make docs         the documentation as a site"
	@echo "make protos | image | manifests | clean"

# Tools that no target installs: what is missing, and how to get it. $(call needs,PROGRAM,HOW)
needs = command -v $(1) >/dev/null || { echo "make $@ needs $(1), which is not in PATH: $(2)" >&2; exit 2; }
# Go's own archives put it where a root shell often does not look.
export PATH := $(PATH):/usr/local/go/bin
GO_HOW := unpack an archive from go.dev/dl, or install a package golang of 1.21 or newer
ROOT_HOW = test "$$(id -u)" = 0 || { echo "make $@ needs root: it mounts, and runs containers" >&2; exit 2; }

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

# A file's tests stay together: they share an agent, a port or a directory's name.
JOBS ?= auto
test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

unit: $(VENV)/.test
	$(BIN)/python -m pytest tests/unit

# Building is no test and has no time limit; what is built stays in a cache outside of the checkout, by version, and what
# an interruption left is gone on with.
programs: $(VENV)/.test
	@$(call needs,go,$(GO_HOW))
	@$(ROOT_HOW)
	$(BIN)/python -m tests.cluster.harness build
	$(BIN)/python -m tests.go_tools build conformance

conformance: $(VENV)/.test
	@$(call needs,go,$(GO_HOW))
	$(BIN)/python -m tests.go_tools build conformance
	$(BIN)/python -m pytest tests/conformance

cluster: $(VENV)/.test
	@$(ROOT_HOW)
	@$(call needs,go,$(GO_HOW))
	$(BIN)/python -m tests.cluster.harness build
	$(BIN)/python -m pytest tests/cluster -s

# With SUITE, that one, built first without a time limit; else those whose programs are wheels or in the cache.
interop: $(VENV)/.test
	$(BIN)/python -m tests.interop run $(or $(SUITE),--ready)

# About an hour; not in CI.
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

# What people without Helm apply. The committed file is replaced by a whole one or not at all.
HELM ?= helm
manifests:
	@$(call needs,$(HELM),install Helm 3.14 or newer from helm.sh or set HELM=PATH; python -m tests.cluster.harness up names the one that the cluster tests build)
	@mkdir -p deploy/manifests
	@{ cat deploy/manifests/namespace.yaml && \
	  $(HELM) template podsvid deploy/chart/podsvid --namespace podsvid --set trustDomain=example.org --no-hooks --kube-version 1.34.0; \
	} > deploy/manifests/.podsvid.yaml && mv deploy/manifests/.podsvid.yaml deploy/manifests/podsvid.yaml || \
	{ rm -f deploy/manifests/.podsvid.yaml; echo "deploy/manifests/podsvid.yaml is as it was" >&2; exit 1; }

# The container image of this checkout; BASE is a Python image, by digest. A few minutes.
BUILDER ?= docker
IMAGE ?= podsvid:0.1.0
image:
	@test -n "$(BASE)" || { echo "give the base image: make image BASE=python:3.13-slim-bookworm@sha256:..." >&2; exit 2; }
	@$(call needs,$(BUILDER),install docker or set BUILDER=buildah or BUILDER=podman)
	$(BUILDER) build --build-arg BASE=$(BASE) -t $(IMAGE) -f deploy/image/Containerfile .

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
