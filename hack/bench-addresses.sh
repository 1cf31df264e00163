#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Measures netplane's address management; test/benchaddresses/README.md says what and how to read it.
#
#   ALLOCS=20000 NODES=5000 PODS=1000 hack/bench-addresses.sh [alloc|writes|claims|agent]...
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench.sh"

assets="$("$ROOT/hack/assets.sh")"
export KUBEBUILDER_ASSETS="$assets"
parts=("$@") own=()
((${#parts[@]})) || parts=(alloc writes claims agent)
for part in "${parts[@]}"; do [[ $part == agent ]] || own+=("$part"); done
((${#own[@]} == 0)) || bench addresses test/benchaddresses "alloc writes claims" "${own[@]}"
# The memory of a full node's agent is one of the figures of make bench-agent.
[[ " ${parts[*]} " != *" agent "* ]] || "$ROOT/hack/bench-agent.sh" | sed -n 's/^bench agent rss-mib/bench addresses agent-rss-mib/p'
