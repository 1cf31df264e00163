#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Measures ADD and DEL against the raw kernel and the reference plugins; test/benchattach/README.md says what and how to read it.
#
#   PODS=64 SLOW=8 ROUNDS=3 hack/bench-attach.sh
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/bench.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench.sh"

plugins="$("$ROOT/hack/binaries.sh" plugins)"
export BENCH_PLUGINS="$plugins"
bench attach test/benchattach attach "$@"
