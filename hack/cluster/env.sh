#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Prints what a shell needs to work with the test cluster: eval "$(hack/cluster/env.sh)".
#
# PATH is led by kind and by the kubectl of the cluster's own release; one on the machine may be too old for it.
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

kind="$("$ROOT/hack/binaries.sh" kind)"
kubectl="$("$ROOT/hack/binaries.sh" kubernetes/kubectl)"
bin="$CACHE/bin-$(digest "$kind" "$kubectl")"
mkdir -p "$bin"
ln -sf "$kind/kind" "$kubectl/kubectl" "$bin/"
prune "$CACHE" bin
# printf %q: a home may have a blank in its name.
# shellcheck disable=SC2016 # the reader's shell expands it
printf 'export PATH=%q:"$PATH"\n' "$bin"
