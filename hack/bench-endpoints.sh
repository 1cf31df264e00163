#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Measures how Services over networks are published; test/benchendpoints/README.md says what and how to read it.
#
#   PODS=5000 FLAPS=60 CLUSTER_PODS=50000 CHURN_SECONDS=180 hack/bench-endpoints.sh [sync|memory]...
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench.sh"

assets="$("$ROOT/hack/assets.sh")"
export KUBEBUILDER_ASSETS="$assets"
bench endpoints test/benchendpoints "sync memory" "$@"
