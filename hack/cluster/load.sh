#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Puts images of the local engine into all nodes of a cluster: hack/cluster/load.sh NAME IMAGE...
#
# A node that has an image already, by its ID, is left alone.
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

(($# >= 2)) || die "usage: load.sh CLUSTER IMAGE..."
cluster="$1"
shift
need docker "run hack/cluster/engine.sh"
eval "$("$ROOT/hack/cluster/env.sh")"
# The label that tells which of the engine's images one in a node came from; containerd's own IDs differ from docker's.
LABEL=netplane.io/engine-id

# ctr of a node, without the warnings that it gives at every call on older machines.
ctr() {
	local node="$1"
	shift
	docker exec --interactive "$node" ctr --namespace=k8s.io "$@" 2> >(grep -v level=warning >&2)
}

has() { [[ -n $(ctr "$1" images list --quiet "labels.\"$LABEL\"==\"$3\",name~=|/$2\$|" </dev/null) ]]; }

load() {
	local image="$1" nodes="$2" id node archive missing=() pids=() pid failed=""
	id="$(docker image inspect --format '{{.Id}}' "$image")" || die "the engine has no image $image"
	for node in $nodes; do
		if ! has "$node" "$image" "$id"; then missing+=("$node"); fi
	done
	((${#missing[@]})) || return 0
	say "loading $image into ${missing[*]}"
	archive="$(mktemp)"
	docker save --output "$archive" "$image"
	for node in "${missing[@]}"; do
		ctr "$node" images import --label "$LABEL=$id" - <"$archive" >/dev/null &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do wait "$pid" || failed=yes; done
	rm -f "$archive"
	[[ -z $failed ]] || die "loading $image failed"
}

nodes="$(kind get nodes --name "$cluster" 2>/dev/null)"
[[ -n $nodes ]] || die "there is no cluster $cluster: run hack/cluster/up.sh $cluster"
for image in "$@"; do load "$image" "$nodes"; done
