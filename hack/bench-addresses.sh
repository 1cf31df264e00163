#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Measures netplane's address management; test/benchaddresses/README.md says what and how to read it.
#
#   ALLOCS=20000 NODES=5000 PODS=1000 hack/bench-addresses.sh [alloc|writes|claims]...
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench.sh"

assets="$("$ROOT/hack/assets.sh")"
export KUBEBUILDER_ASSETS="$assets"
bench addresses test/benchaddresses "alloc writes claims" "$@"
