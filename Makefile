# Every target installs what it needs into .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Node tests wait more than they compute: more of them than there are cores.
JOBS ?= $(shell expr 2 \* $$(nproc 2>/dev/null || echo 2))

# $(call need,program,how to get it): a target that lacks a program says so before it has changed anything.
need = @command -v $(1) >/dev/null 2>&1 || { echo "make $@ needs $(1): $(2)" >&2; exit 2; }
root = @test "$$(id -u)" = 0 || { echo "make $@ needs root: $(1)" >&2; exit 2; }

.DEFAULT_GOAL := help
.PHONY: help quickstart test unit conformance cluster interop mutants bench lint docs protos manifests image clean

help:
	@echo "make quickstart   see a volume rotate, without Kubernetes"
	@echo "make test         unit and node tests, $(JOBS) side by side (JOBS=): 15 minutes (node tests want root or user namespaces)"
	@echo "make unit         the unit tests: 1 minute"
	@echo "make lint         ruff, mypy --strict, the import rules: 1 minute"
	@echo "make conformance  clients and suites that others wrote: 4 minutes, and 10 for building once (Go, root; Node.js, Rust and Maven for some)"
	@echo "make cluster      a pod on a real kubelet, brought up on this host: 40 minutes, and 15 for building once (root, Go)"
	@echo "make interop      lists the peers that take long to build; SUITE=name builds one, and runs it"
	@echo "make mutants      changes of the product that the tests must notice: more than an hour; SAMPLE=200 tries so many"
	@echo "make bench        latency and memory against their budgets: some minutes (root)"
	@echo "make docs         the documentation as a site"
	@echo "make manifests    what the chart renders, for kubectl (Helm)"
	@echo "make image        the container image: BASE=... BUILDER=docker|podman|buildah"
	@echo "make protos       stubs from proto/"
	@echo "make clean        what the others made here; programs and images stay in ~/.cache/podsvid"

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
	@echo "installing podsvid into $(VENV): some 40 packages, which takes a minute; pip fetches"
	@{ $(BIN)/pip install --disable-pip-version-check --progress-bar off -e . && touch $(VENV)/.installed; } | \
	  sed -un 's/^Collecting \([^ ]*\).*/  \1/p; s/^Installing collected.*/  and unpacks them/p'
	@test -e $(VENV)/.installed && mv $(VENV)/.installed $@

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
	@echo "about 15 minutes"
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup -m "not alone" tests/node tests/unit
	$(BIN)/python -m pytest -q -m alone tests/node

unit: $(VENV)/.test
	$(BIN)/python -m pytest -q -n $(JOBS) tests/unit

# Building programs, which takes minutes the first time, is no test and has no time limit.
conformance: $(VENV)/.test
	$(BIN)/python -m tests.go_tools build conformance
	$(BIN)/python -m tests.conformance.foreign
	@echo "about 4 minutes"
	$(BIN)/python -m pytest tests/conformance

cluster: $(VENV)/.test
	$(call root,it mounts and runs containers)
	$(BIN)/python -m tests.cluster.harness build
	@echo "about 40 minutes"
	$(BIN)/python -m pytest tests/cluster -s

interop: $(VENV)/.test
	$(BIN)/python -m tests.interop $(if $(SUITE),run $(SUITE),list)

# More than an hour; not in CI.
mutants: $(VENV)/.test
	$(BIN)/python -m tests.mutants --write $(if $(SAMPLE),--sample $(SAMPLE))

bench: $(VENV)/.test
	$(BIN)/python -m bench
	$(BIN)/python -m bench.signer

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The generator is pinned: before its 1.0 it may change what it reads.
docs: $(VENV)/.run
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[docs]'
	@$(BIN)/zensical build --clean --strict
	@echo "open site/index.html in a browser: search works from a file as well; or run $(BIN)/zensical serve"

protos: $(VENV)/.test
	$(BIN)/python proto/generate.py

# What people without Helm apply. A file is replaced when it is whole.
HELM ?= helm
RENDER = $(HELM) template podsvid deploy/chart/podsvid --namespace podsvid --set trustDomain=example.org --kube-version 1.34.0
ALL = --no-hooks --set crds.install=false --set admissionPolicy.enabled=false
PUBLIC = --set signer.bundle.enabled=true --set signer.oidc.enabled=true --set signer.oidc.certSecret=podsvid-oidc \
  --set signer.settings.jwt_issuer=https://oidc.example.org
manifests:
	$(call need,$(HELM),install Helm 3.17 or newer; or with Go: make manifests HELM=\$$($(BIN)/python -m tests.go_tools path cluster helm))
	@mkdir -p deploy/manifests/uninstall deploy/manifests/public
	@new=deploy/manifests/.new; trap 'rm -f $$new' EXIT; set -e; \
	  $(RENDER) --show-only templates/crds.yaml > $$new; mv $$new deploy/manifests/crds.yaml; \
	  $(RENDER) --show-only templates/uninstall-guard.yaml > $$new; sed -i '/--one-line/d' $$new; \
    mv $$new deploy/manifests/uninstall/check.yaml; \
	  $(RENDER) --show-only templates/admission.yaml > $$new; mv $$new deploy/manifests/admission.yaml; \
	  $(RENDER) $(ALL) > $$new; mv $$new deploy/manifests/podsvid.yaml; \
	  $(RENDER) $(ALL) $(PUBLIC) > $$new; mv $$new deploy/manifests/public/podsvid.yaml

# The container image of this checkout; BASE is a Python image, by digest.
BUILDER ?= docker
IMAGE ?= podsvid:0.1.0
image:
	@test -n "$(BASE)" || { echo "give the base image: make image BASE=python:3.13-slim-bookworm@sha256:..." >&2; exit 2; }
	$(call need,$(BUILDER),install it or name another builder: BUILDER=podman or BUILDER=buildah)
	$(BUILDER) build --build-arg BASE=$(BASE) -t $(IMAGE) -f deploy/image/Containerfile .

clean:
	rm -rf $(VENV) site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
