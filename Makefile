# One line per target for `make help` stands behind its `##`. `make setup` leaves stamps in .setup/; a stamp newer than
# what it was made from means there is nothing to do.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
# The targets of `make test` run cheapest first, also under -j.
.NOTPARALLEL:
.DELETE_ON_ERROR:

STAMPS := .setup
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/aoe-csi
PYTHON ?= $(CURDIR)/.venv/bin/python
export PATH := $(CURDIR)/$(STAMPS)/bin:$(CURDIR)/.venv/bin:$(PATH)

SOURCES = $(wildcard csi core operator lab tests bench)
UNIT_TESTS = $(wildcard tests/unit tests/architecture tests/contract tests/simulated)
PYTEST := $(PYTHON) -m pytest

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- what a machine needs -------------------------------------------------------------------------------------------

UV_VERSION := 0.13.9
# A go on the PATH serves from this version on; by itself it fetches the newer one that a module asks for.
GO_MINIMUM := 1.24
GO_VERSION := 1.26.8

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# The list is refreshed first, since a fresh machine has none; one dead source in it need not matter, so the
# installation decides.
apt_install = { \
	$(SUDO) apt-get -qq update || echo 'apt-get update failed; going on with the lists that are here'; \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -y -qq -o DPkg::Lock::Timeout=300 \
		-o DPkg::Use-Pty=0 -o Dpkg::Options::=--force-confold install --no-install-recommends $(1); \
}

.PHONY: setup
setup: venv $(STAMPS)/packages $(STAMPS)/bin/go ## Install what is missing on this machine: packages, Python environment, Go

.PHONY: venv
venv: $(STAMPS)/venv ## Build the Python environment alone (enough for lint and test-unit)

# From requirements/dev.txt to the letter, hashes included. ensurepip is what Debian keeps in a package of its own; the system's Python refuses pip
# (PEP 668), hence a private environment for uv itself.
$(STAMPS)/venv: pyproject.toml requirements/dev.txt
	@mkdir -p $(STAMPS)/bin
	@if ! command -v uv >/dev/null; then \
		echo 'Installing uv $(UV_VERSION)'; \
		python3 -c 'import ensurepip' 2>/dev/null || $(call apt_install,python3 python3-venv ca-certificates); \
		python3 -m venv $(STAMPS)/uv; \
		$(STAMPS)/uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); \
		ln -sf ../uv/bin/uv $(STAMPS)/bin/uv; \
	fi
	uv venv --quiet --allow-existing .venv
	uv pip sync --quiet --python .venv --require-hashes requirements/dev.txt
	uv pip install --quiet --python .venv --no-deps --editable .
	@touch $@

# Versions and hashes, but no addresses to download from: those are each machine's own matter. What is pinned stays
# unless it must move; `make lock UPGRADE=--upgrade` moves everything.
LOCK = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(UPGRADE)
.PHONY: lock
lock: venv ## Pin anew, after a change of pyproject.toml, what everything is built and tested with
	$(LOCK) --group dev --extra kubernetes pyproject.toml --output-file requirements/dev.txt >/dev/null
	$(LOCK) --group machine-tests --constraint requirements/dev.txt pyproject.toml \
		--output-file requirements/machine.txt >/dev/null
	$(LOCK) --extra kubernetes --constraint requirements/dev.txt pyproject.toml \
		--output-file requirements/image.txt >/dev/null

# One package a line, # begins a comment. Without apt (another distribution) the names are shown instead. What KubeVirt
# and its guests' disk are built with is for those alone who test with them.
$(STAMPS)/packages: $(wildcard lab/packages.txt)
$(STAMPS)/kubevirt-packages: lab/kubevirt/host-packages.txt
$(STAMPS)/packages $(STAMPS)/kubevirt-packages:
	@mkdir -p $(STAMPS)
	@wanted=$$(sed 's/#.*//' /dev/null $^); missing=''; \
	if ! command -v apt-get >/dev/null; then \
		echo 'This is no Debian: install what corresponds to:' $$wanted; \
	else \
		for package in $$wanted; do \
			dpkg-query -W -f '$${db:Status-Status}' "$$package" 2>/dev/null | grep -qx installed || missing+=" $$package"; \
		done; \
		if [ -n "$$missing" ]; then \
			echo "Installing:$$missing"; \
			$(call apt_install,$$missing); \
		fi; \
	fi
	@touch $@

# Debian 12 has Go 1.19, which cannot switch to a newer toolchain by itself, but can download the module that a newer
# Go would switch to (golang.org/toolchain, verified against the checksum database). Modules carry no permission
# bits, so the programs among its files are made executable here. A symlink is enough: go finds its root through it.
$(STAMPS)/bin/go:
	@mkdir -p $(STAMPS)/bin
	@at_least() { \
		have=$$(go version 2>/dev/null | sed -nE 's/^go version go([0-9]+\.[0-9]+).*/\1/p'); \
		[ -n "$$have" ] && printf '%s\n' $$1 "$$have" | sort -C -V; \
	}; \
	at_least 1.0 || { echo 'Installing Go from Debian'; $(call apt_install,golang-go); }; \
	if at_least $(GO_MINIMUM); then \
		ln -sf "$$(command -v go)" $@; \
	else \
		echo 'Downloading Go $(GO_VERSION)'; \
		module="golang.org/toolchain@v0.0.1-go$(GO_VERSION).linux-$$(go env GOARCH)"; \
		GOMODCACHE='$(CACHE)/go' GOFLAGS=-modcacherw go mod download "$$module"; \
		root="$(CACHE)/go/$$module"; \
		chmod +x "$$root"/bin/* "$$root"/pkg/tool/*/*; \
		ln -sf "$$root/bin/go" $@; \
	fi
	@go version

# --- judging --------------------------------------------------------------------------------------------------------

.PHONY: lint
lint: venv ## Judge the source: ruff, formatting, types, layers
	ruff check
	ruff format --check
	mypy $(SOURCES)
	lint-imports --no-logo

.PHONY: format
format: venv ## Rewrite the source as `lint` wants it, where ruff can
	ruff check --fix
	ruff format

.PHONY: test-unit
test-unit: venv ## Test what needs neither lab nor root: units, the house's rules, the engine on fakes
	$(PYTEST) -n auto --dist worksteal -m 'not long' $(UNIT_TESTS)

.PHONY: test-lab
test-lab: setup ## Test on real LVM, vblade and kernel initiators, in virtual machines
	$(PYTEST) -m 'not long' tests/lab

PODS = tests/pods/test_
LIBVIRT_CONTRACT = tests/lab/test_contract.py::test_libvirt_and_its_fake_keep_one_contract

# What the tests saw, with the commit: docs/evidence/NAME.md is what `evidence-NAME` writes where it runs tests itself,
# and the others `make bench`.
EVIDENCE = $(addprefix evidence-,simulated cluster lab lab-long demo pods pods-volumes pods-faults pods-long guests)
.PHONY: evidence $(EVIDENCE) evidence-pods-sanity evidence-pods-churn
.PHONY: evidence-guests-libvirt evidence-guests-migration evidence-guests-cluster evidence-guests-kubevirt
evidence: $(EVIDENCE) ## Run all tests that give figures, long ones too, and write docs/evidence/
evidence-simulated: venv
	$(PYTEST) -n auto --dist worksteal --evidence simulated tests/simulated
evidence-cluster: setup
	$(PYTEST) -n 3 --dist worksteal --evidence cluster tests/cluster
evidence-lab: setup
	$(PYTEST) --evidence lab -m 'not long' tests/lab
evidence-lab-long: setup
	$(PYTEST) --evidence lab-long -m long tests/lab --ignore-glob='*/test_guest*.py' --deselect $(LIBVIRT_CONTRACT)
evidence-demo: setup
	$(PYTEST) --evidence demo -m long tests/demo
# Apart, so that each can be run again alone: they take from half an hour to more than an hour.
evidence-pods: setup
	$(PYTEST) --evidence pods -m 'not long' tests/pods --ignore=$(PODS)faults.py --ignore=$(PODS)volumes.py
evidence-pods-volumes: setup
	$(PYTEST) --evidence pods-volumes $(PODS)volumes.py
evidence-pods-faults: setup
	$(PYTEST) --evidence pods-faults -m 'not long' $(PODS)faults.py
evidence-pods-long: evidence-pods-sanity evidence-pods-churn
evidence-pods-sanity: setup
	AOE_LAB_COMPUTE=1 $(PYTEST) --evidence pods-sanity -m long $(PODS)csi_sanity.py
evidence-pods-churn: setup
	$(PYTEST) --evidence pods-churn -m long $(PODS)churn.py
evidence-guests: evidence-guests-libvirt evidence-guests-migration evidence-guests-cluster evidence-guests-kubevirt
evidence-guests-libvirt: setup
	$(PYTEST) --evidence guests-libvirt $(LIBVIRT_CONTRACT) tests/lab/test_guests.py
evidence-guests-migration: setup
	$(PYTEST) --evidence guests-migration tests/lab/test_guest_migration.py
evidence-guests-cluster: setup
	$(PYTEST) --evidence guests-cluster tests/guests
evidence-guests-kubevirt: setup $(STAMPS)/kubevirt-packages
	$(PYTEST) --evidence guests-kubevirt tests/kubevirt

# They wait more than they work: three control planes at a time.
.PHONY: test-cluster
test-cluster: setup ## Test on a real Kubernetes control plane, built from its modules (the first time some ten minutes)
	$(PYTEST) -n 3 --dist worksteal -m 'not long' tests/cluster

.PHONY: test-pods
test-pods: setup ## Test on a whole cluster: kubelets, sidecars, pods (the first time some twenty minutes)
	$(PYTEST) -m 'not long' tests/pods

# What of tests/pods `make test` has time for, on a machine less: each node costs a third of a processor by being there.
# The rest takes an hour and more, a lost writer that is fenced five minutes of it.
MAIN_PODS = $(PODS)first_path.py $(PODS)volumes.py::test_ext4_and_moving_between_nodes

.PHONY: test-main-pods
test-main-pods: setup ## Test the main job on a whole cluster: the part of test-pods that fits into an hour with all others
	AOE_LAB_COMPUTE=1 $(PYTEST) $(MAIN_PODS)

.PHONY: test-guests
test-guests: setup $(STAMPS)/kubevirt-packages ## Test with guests of libvirt and of a real KubeVirt (hours)
	$(PYTEST) $(LIBVIRT_CONTRACT) tests/lab/test_guests.py tests/lab/test_guest_migration.py
	$(PYTEST) tests/guests
	$(PYTEST) tests/kubevirt

.PHONY: test
test: lint test-unit test-cluster test-main-pods test-lab ## Do all five, cheapest first

.PHONY: test-long
test-long: test-pods $(STAMPS)/kubevirt-packages ## Run the tests that take minutes or hours
	for part in simulated cluster lab pods guests kubevirt demo; do $(PYTEST) -m long tests/$$part || exit 1; done

.PHONY: bench bench-standalone bench-resources bench-claims bench-guests
bench: bench-standalone bench-resources bench-claims bench-guests ## Measure, as ratios where there is something to compare with; writes docs/evidence/
bench-standalone: setup ## Measure our calls against scripts of the same commands, the wire against the disk
	$(PYTHON) -m bench
bench-resources: setup ## Measure the storage role with 10,000 volumes on a real API server
	$(PYTHON) -m bench.resources
bench-claims: setup ## Measure claims and pods on a whole cluster
	$(PYTHON) -m bench.claims
bench-guests: setup ## Measure how soon a running guest has a volume
	$(PYTHON) -m bench.guests

# --- the lab --------------------------------------------------------------------------------------------------------

.PHONY: lab-up
lab-up: setup ## Boot the lab's machines, building first what is not cached
	$(PYTHON) -m aoe_lab up

.PHONY: lab-status
lab-status: venv ## Show which of the lab's machines run
	$(PYTHON) -m aoe_lab status

.PHONY: lab-down
lab-down: venv ## Stop the lab's machines and take down its network
	$(PYTHON) -m aoe_lab down

.PHONY: cluster
cluster: setup ## Start a Kubernetes cluster with aoe-csi on it, and leave it for playing; says its KUBECONFIG
	$(PYTHON) -m aoe_lab.kubernetes up

.PHONY: cluster-kubevirt
cluster-kubevirt: setup $(STAMPS)/kubevirt-packages ## The same with KubeVirt on it (the first time more than an hour)
	$(PYTHON) -m aoe_lab.kubernetes up --kubevirt --compute 2

.PHONY: cluster-down
cluster-down: venv ## End that cluster
	$(PYTHON) -m aoe_lab.kubernetes down

.PHONY: demo
demo: setup ## Show the main job on a cluster: helm install, a claim, a pod, a power cut, and nothing lost
	$(PYTHON) -m aoe_lab.kubernetes.demo

.PHONY: demo-guest
demo-guest: setup ## Show a claim as a disk of a running libvirt guest: attached, through a power cut, grown, detached
	$(PYTHON) -m aoe_lab.kubernetes.demo_guest

.PHONY: demo-standalone
demo-standalone: setup ## Show a volume's life without Kubernetes, from creation to deletion
	$(PYTHON) -m aoe_lab.demo

# --- the source itself ----------------------------------------------------------------------------------------------

# The include root is csi/, so that the stubs import each other as aoe_csi.proto. only_sync is the flag as the plugin
# reads it.
PROTO_OUT ?= csi
.PHONY: proto
proto: $(STAMPS)/venv ## Generate the gRPC stubs from csi/aoe_csi/proto/*.proto
	$(PYTHON) -m grpc_tools.protoc -Icsi --python_out=$(PROTO_OUT) --grpc_python_out=$(PROTO_OUT) \
		--plugin=$(dir $(PYTHON))protoc-gen-mypy --plugin=$(dir $(PYTHON))protoc-gen-mypy_grpc \
		--mypy_out=quiet:$(PROTO_OUT) \
		--mypy_grpc_out=quiet,only_sync,generate_concrete_servicer_stubs:$(PROTO_OUT) \
		csi/aoe_csi/proto/csi.proto csi/aoe_csi/proto/pluginregistration.proto

CRDS := charts/aoe-csi/files/crds
.PHONY: crds
crds: venv ## Generate the custom resource definitions from core/aoe_core/resources
	$(PYTHON) -m aoe_core.resources.definitions $(CRDS)

.PHONY: deploy
deploy: setup ## Render the chart into deploy/aoe-csi.yaml, for clusters without helm
	$(PYTHON) -m aoe_lab.kubernetes.helm

.PHONY: image
image: setup ## Build the container image into dist/, with its bill of materials
	$(PYTHON) -m aoe_lab.container_images --architecture $(or $(ARCH),amd64) dist

.PHONY: clean
clean: ## Remove what make and the tools left in the checkout; the cache outside stays
	rm -rf .venv $(STAMPS) dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
