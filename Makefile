# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash -o errexit -o nounset -o pipefail
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The kind cluster that demo and test-e2e share; its kubectl context is kind-$(CLUSTER).
CLUSTER ?= netplane
# Extra flags for go test, such as -run or -v.
TESTFLAGS ?=

GIT_VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Without -trimpath the packages of Kubernetes come from the same build cache as the node's own binaries.
# kube-scheduler refuses to parse an empty or foreign version, so it gets the Kubernetes release that it is built from.
KUBE_VERSION := $(shell go list -m -f '{{.Version}}' k8s.io/kubernetes 2>/dev/null)
LDFLAGS := -s -w \
  -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION)+netplane.$(GIT_VERSION) \
  -X k8s.io/component-base/version.gitMajor=$(word 1,$(subst ., ,$(KUBE_VERSION:v%=%))) \
  -X k8s.io/component-base/version.gitMinor=$(word 2,$(subst ., ,$(KUBE_VERSION:v%=%)))

.PHONY: help
help: ## Print this list
	@awk 'BEGIN {FS = ":.*## "; print "netplane: make TARGET"} /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use

.PHONY: demo
demo: ## Set everything up, run the talk's example on a kind cluster, leave it running
	hack/demo-up.sh $(CLUSTER)
	hack/demo.sh $(CLUSTER)

.PHONY: demo-down
demo-down: ## Remove the kind cluster
	hack/cluster/down.sh $(CLUSTER)

# The kubectl context that make uninstall works on; empty is the current one.
CONTEXT ?=

.PHONY: uninstall
uninstall: ## Take netplane out of a cluster without cutting pods off (CONTEXT=...; see docs/user/uninstall.md)
	hack/uninstall.sh restore $(CONTEXT)
	hack/uninstall.sh remove $(CONTEXT)

.PHONY: engine-down
engine-down: ## Stop the container engine, if make demo or make test started it
	hack/cluster/engine.sh stop

##@ Build

.PHONY: build
build: ## Build the four binaries into bin/
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/netplane-scheduler ./scheduler
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/netplane-controller ./netcontroller
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/netplane-agent ./cni/agent
	CGO_ENABLED=0 go build -ldflags '-s -w' -o bin/netplane ./cni/plugin

.PHONY: images
images: build ## Build the container images with the local engine
	hack/cluster/engine.sh
	hack/cluster/images.sh

##@ Test

.PHONY: test
test: test-unit test-integration test-netns test-e2e ## Run all four tiers of tests
	@echo "make test: all four tiers passed"

# go test, with the reasons of tests that were skipped at the end: without -v it keeps them to itself.
GOTEST = gotestsum="$$(hack/tools.sh gotestsum)"; "$$gotestsum" --format pkgname --

.PHONY: test-unit
test-unit: ## Tests without cluster or root, with the race detector
	$(GOTEST) -race $(TESTFLAGS) ./api/... ./scheduler/... ./netcontroller/... ./cni/...

# Two packages at a time, each with an API server of its own: they mostly wait.
.PHONY: test-integration
test-integration: ## Tests against a real kube-apiserver and etcd
	KUBEBUILDER_ASSETS="$$(hack/assets.sh)"; export KUBEBUILDER_ASSETS; $(GOTEST) -race -timeout 20m $(TESTFLAGS) -p 2 ./test/integration/...

# How long make soak runs (30m), unless SEEDS says how many histories.
FOR ?= 10m
SEEDS ?=

.PHONY: soak
soak: ## Random histories of 50 agents with faults (FOR=30m, or SEEDS=200; SEED=7 replays one)
	assets="$$(hack/assets.sh)"; KUBEBUILDER_ASSETS="$$assets" NETPLANE_SEED=$(SEED) NETPLANE_SEEDS=$(SEEDS) NETPLANE_SOAK=$(if $(SEEDS),,$(FOR)) \
	  go test -count=1 -timeout 0 -v $(TESTFLAGS) ./test/integration/addresses

.PHONY: test-netns
test-netns: ## Tests on the real kernel, in network namespaces of their own; what it lacks is tried on Debian's, in a virtual machine
	hack/provide.sh nft iptables # which reference plugins run
	hack/test-netns.sh $(TESTFLAGS)

.PHONY: test-e2e
test-e2e: ## Tests on the kind cluster, which is made if it is not there
	hack/demo-up.sh $(CLUSTER)
	hack/binaries.sh flannel flannelcni >/dev/null
	eval "$$(hack/cluster/env.sh)"; NETPLANE_E2E_CONTEXT=kind-$(CLUSTER) go test -tags e2e -count=1 -timeout 70m -v $(TESTFLAGS) ./test/e2e/...

.PHONY: bench-scheduler
bench-scheduler: ## Measure the scheduler against the stock one (NODES, PODS, ROUNDS; see test/bench)
	hack/bench-scheduler.sh

.PHONY: bench-addresses
bench-addresses: ## Measure address management: allocation, API writes, claims (see test/benchaddresses)
	hack/bench-addresses.sh

.PHONY: bench-endpoints
bench-endpoints: ## Measure EndpointSlices over networks against kube-controller-manager's (see test/benchendpoints)
	hack/bench-endpoints.sh

.PHONY: bench-agent
bench-agent: ## Measure an agent's memory and what it watches in a cluster of 5,000 nodes (see test/benchagent)
	hack/bench-agent.sh

.PHONY: bench-attach
bench-attach: ## Measure ADD and DEL against the bare kernel and the reference plugins (see test/benchattach)
	hack/bench-attach.sh

.PHONY: bench-pods
bench-pods: ## Measure on the demonstration cluster what networks cost a Deployment (REPLICAS, ROUNDS)
	CLUSTER=$(CLUSTER) hack/bench-pods.sh

##@ Check

.PHONY: generate
generate: ## Regenerate deepcopy code and CRDs
	hack/generate.sh

.PHONY: verify
verify: ## Check that generated files, modules and formatting are up to date
	hack/verify.sh

.PHONY: lint
lint: ## Run golangci-lint with the import rules of the design
	hack/lint.sh

.PHONY: clean
clean: ## Remove what was built in this folder
	rm -rf bin _output
