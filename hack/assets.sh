#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Prints the folder for KUBEBUILDER_ASSETS (etcd, kube-apiserver and kubectl for envtest), building them once per content.
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

etcd="$("$ROOT/hack/binaries.sh" etcd)"
"$ROOT/hack/binaries.sh" kubernetes/kube-apiserver >/dev/null
kubernetes="$("$ROOT/hack/binaries.sh" kubernetes/kubectl)"
# envtest wants all three in one folder.
assets="$CACHE/assets-$(digest "$etcd" "$kubernetes")"
mkdir -p "$assets"
ln -sf "$etcd/etcd" "$kubernetes/kube-apiserver" "$kubernetes/kubectl" "$assets/"
prune "$CACHE" assets
echo "$assets"
