#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Measures what an agent costs its node; test/benchagent/README.md says what and how to read it.
#
#   NODES=5000 hack/bench-agent.sh
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench.sh"

assets="$("$ROOT/hack/assets.sh")"
export KUBEBUILDER_ASSETS="$assets"
bench agent test/benchagent agent "$@"
