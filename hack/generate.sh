#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Regenerates what is generated: deepcopy code and the CRDs. With an argument,
# works in that copy of the tree instead of this one.
set -o errexit -o nounset -o pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
tree="${1:-$here}"

controller_gen="$("$here/hack/tools.sh" controller-gen)"
cd "$tree"
"$controller_gen" object:headerFile=hack/boilerplate.go.txt paths=./api/v1alpha1
"$controller_gen" crd paths=./api/v1alpha1 output:crd:dir=manifests/crds
