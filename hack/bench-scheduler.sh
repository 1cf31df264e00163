#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Measures netplane-scheduler against the stock kube-scheduler; test/bench/README.md says what and how to read it.
#
#   NODES=5000 PODS=10000 ROUNDS=3 REQUEUES=100 PROFILES="stock netplane" PPROF= hack/bench-scheduler.sh [heap|requeue|throughput]...
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench.sh"

assets="$("$ROOT/hack/assets.sh")"
export KUBEBUILDER_ASSETS="$assets" PATH="$assets:$PATH"
if [[ -n ${PPROF:-} ]]; then
	PPROF="$(realpath -m "$PPROF")"
	export PPROF
fi
bench scheduler test/bench "heap requeue throughput" "$@"
