#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Measures how much later the pods of a Deployment are ready with two networks than without, on the cluster $CLUSTER that
# `make demo` leaves behind, and what they leave there; test/e2e/benchpods_test.go says how.
#
#   REPLICAS=150 ROUNDS=3 CLUSTER=netplane hack/bench-pods.sh
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench.sh"

cluster="${CLUSTER:-netplane}"
eval "$("$ROOT/hack/cluster/env.sh")"
kind get clusters 2>/dev/null | grep -qx "$cluster" || die "there is no cluster $cluster: make demo brings it up"
export NETPLANE_E2E_CONTEXT="kind-$cluster" GOFLAGS="${GOFLAGS:-} -tags=e2e"
bench pods test/e2e pods "$@"
