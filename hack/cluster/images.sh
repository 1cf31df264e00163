#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Makes the images netplane/{scheduler,controller,agent}:dev of the static binaries in bin/. The same binaries give the same
# image again, so that load.sh has nothing to do.
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# image NAME DOCKERFILE FILE...: only these files are sent to the engine.
image() {
	local name="netplane/$1:${NETPLANE_TAG:-dev}" dockerfile="$2" file
	shift 2
	for file in "$@"; do
		[[ -e $ROOT/$file ]] || die "$file is missing: run make build"
	done
	docker_build --tag "$name" --file "$dockerfile" - < <(tar -C "$ROOT" --owner=0 --group=0 -c "$dockerfile" "$@")
	echo "$name"
}

need docker "run hack/cluster/engine.sh"
image scheduler scheduler/Dockerfile bin/netplane-scheduler
image controller netcontroller/Dockerfile bin/netplane-controller
image agent cni/Dockerfile bin/netplane-agent bin/netplane cni/rootfs
