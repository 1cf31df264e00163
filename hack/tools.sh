#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Prints the path of a tool (golangci-lint, controller-gen, gotestsum, kustomize) after building it, once per content of hack/tools/go.mod.
set -o errexit -o nounset -o pipefail

(($# == 1)) || { echo "usage: tools.sh TOOL" >&2; exit 1; }
dir="$("$(dirname "${BASH_SOURCE[0]}")/binaries.sh" "tools/$1")"
echo "$dir/$1"
