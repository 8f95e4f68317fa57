# The only place with commands: CI and the README call these targets.
.DEFAULT_GOAL := help
SHELL := /bin/sh
CARGO ?= cargo
# One profile for everything, so that everything is built once.
PROFILE := --release --locked
HOST := $(shell rustc --print host-tuple)
BIN := target/$(HOST)/release
DIST := target/$(HOST)/dist
ROWS ?=
FUZZ_SECONDS ?= 30
SEEDS ?= 100000
SOAK_SECONDS ?= 120
DENY_VERSION := 0.20.2
CASES ?=
SUITE = TEST="$(CARGO) test $(PROFILE) --workspace --test cluster --" e2e/node/suite.sh
SHIPPED := $(BIN)/podlight-activator $(DIST)/podlight-sidecar $(BIN)/podlight-testapp

.PHONY: help build dist dist-sidecar control-plane helm browser run demo test test-xdp simulate peers soak bench bench-xdp bench-e2e fuzz \
    lint deny advisories fmt image chart chart-readme root xdp xdp-check e2e e2e-fast e2e-keep e2e-images e2e-build e2e-node-image ci clean

help: ## Print this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the binaries, statically linked, and the tests with them
	$(CARGO) build $(PROFILE) --workspace --all-targets

dist: dist-sidecar ## Build the binaries as the images ship them
	$(CARGO) build $(PROFILE) -p podlight-activator --bins

dist-sidecar:
	$(CARGO) build --locked --profile dist -p podlight-sidecar --bins

control-plane: ## Build etcd and kube-apiserver from Go modules, once, into the user's cache
	@e2e/cluster/build.sh

helm: ## Build helm from its Go module, once, into the user's cache
	@e2e/cluster/helm.sh

browser: ## Install Chromium (Debian's package) where there is none
	@e2e/chromium.sh

run: build ## Run an activator in standalone mode: make run ARGS="--cluster-from …"
	$(BIN)/podlight-activator $(ARGS)

demo: build ## Show the whole way of an event with real processes: no cluster, no Go, no root (DEMO_EXIT=1 ends it)
	@$(BIN)/podlight-demo

peers: ## Install nginx, HAProxy, wrk, iperf3, nmap and other programs that figures and tests stand beside (Debian, as root)
	@e2e/peers.sh

test: build control-plane helm browser peers ## All tests, those against a real API server and in a real browser included
	$(CARGO) test $(PROFILE) --workspace

root:
	@[ "$$(id -u)" = 0 ] || { echo "FAILED: this takes root (network namespaces, BPF); nothing was done" >&2; exit 1; }

test-xdp: root build peers ## Probes answered by the kernel, in network namespaces (root; fails where it may not)
	$(CARGO) test $(PROFILE) --workspace --features podlight-xdp/user --test program
	$(CARGO) test $(PROFILE) --workspace --test xdp

soak: build ## Pods flap, die and are replaced under load: make soak SOAK_SECONDS=600
	SOAK_SECONDS=$(SOAK_SECONDS) $(CARGO) test $(PROFILE) --workspace --test soak -- --nocapture

simulate: ## Simulate many seeds: make simulate SEEDS=1000000, or one: SEED=7
	SEEDS=$(SEEDS) $(if $(SEED),SEED=$(SEED)) $(CARGO) test $(PROFILE) --workspace --test simulation -- --nocapture

bench: build dist-sidecar control-plane peers ## Print the tables of figures: make bench ROWS="table sidecar"; JSON in target/bench
	@$(BIN)/podlight-bench $(ROWS)

# A group of its own: bench-table, bench-latency, bench-sidecar, bench-proxy, bench-held, bench-rollout, bench-events, bench-storm.
bench-%: build dist-sidecar control-plane peers
	@$(BIN)/podlight-bench $*

bench-xdp: root build peers ## The figures of probes answered by the kernel, beside nginx (root)
	@$(BIN)/podlight-bench xdp

fuzz: ## Fuzz everything parsed from the network, FUZZ_SECONDS each
	@e2e/fuzz/run.sh $(FUZZ_SECONDS)

lint: deny ## Formatting, clippy with warnings as errors, docs, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) --workspace --all-targets -- -D warnings
	$(CARGO) clippy $(PROFILE) --workspace --test xdp --test cluster -- -D warnings
	$(CARGO) clippy $(PROFILE) --workspace --features podlight-xdp/user --test program -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(PROFILE) --workspace --no-deps --document-private-items

deny: ## Licences, sources and duplicates of dependencies
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --quiet --locked cargo-deny@$(DENY_VERSION)
	$(CARGO) deny --locked --offline check --hide-inclusion-graph bans licenses sources

advisories: ## Known vulnerabilities of dependencies (needs the advisory database)
	$(CARGO) deny --locked check advisories

fmt: ## Format
	$(CARGO) fmt --all

xdp: ## Build the XDP program's object, which the repository keeps (installs a second compiler: Debian, as root)
	@activator/xdp/build.sh

xdp-check: ## Compare the kept object with what its source gives, byte for byte
	@activator/xdp/build.sh --check

image: dist ## Build both images with docker, podman or buildah, whichever works
	@e2e/image.sh $(BIN)/podlight-activator $(DIST)/podlight-sidecar

e2e: e2e-build ## The suite on a cluster that kind makes (root), on KUBECONFIG's with E2E_USE_KUBECONFIG=1: make e2e CASES="cold crash"
	@$(SUITE) $(if $(E2E_USE_KUBECONFIG),kubeconfig,kind) $(SHIPPED) $(CASES)

e2e-fast: e2e-build ## The suite on a cluster without Docker (root), which is up in seconds
	@$(SUITE) node $(SHIPPED) $(CASES)

e2e-keep: e2e-build ## As e2e, and leave the cluster up; e2e/node/kind.sh ends it
	@KEEP=1 $(SUITE) kind $(SHIPPED) $(CASES)

bench-e2e: e2e-build ## The figures of a whole cluster, kubelets and all (root)
	@TEST="$(BIN)/podlight-bench cluster" e2e/node/suite.sh $(if $(E2E_USE_KUBECONFIG),kubeconfig,kind) $(SHIPPED)

e2e-images: e2e-build ## Write the suite's images as archives into target/images, for a cluster of your own
	@e2e/node/images.sh target/images $(SHIPPED)

e2e-build: dist-sidecar
	$(CARGO) build $(PROFILE) --workspace --bins --test cluster

e2e-node-image: ## Build kind's node image, once, into the user's cache, from Go modules and Debian's packages (root)
	@e2e/node/kind-image.sh

chart: build control-plane helm ## Lint the chart, render its matrix, and hold it against a real API server and the programs
	$(CARGO) test $(PROFILE) --workspace --test chart

chart-readme: build ## Write the chart's README anew from the comments in values.yaml
	@$(BIN)/podlight-chart

ci: lint ## What CI runs; ends in the tests
	$(MAKE) xdp-check
	$(MAKE) demo DEMO_EXIT=1
	$(MAKE) test-xdp
	$(MAKE) test

clean: ## Remove what was built in the checkout
	$(CARGO) clean
