#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Removes a test cluster and its physical networks: hack/cluster/down.sh [NAME]. The engine and the caches stay.
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=hack/cluster/physical.sh
source "$ROOT/hack/cluster/physical.sh"

cluster="${1:-netplane}"
if ! timeout 10 docker version >/dev/null 2>&1; then
	say "no container engine answers: nothing to remove"
	exit 0
fi
eval "$("$ROOT/hack/cluster/env.sh")"
step "removing cluster $cluster" kind delete cluster --name "$cluster"
for phy in "${PHYSICAL[@]}"; do
	network="$(phy_network "$cluster" "$phy")"
	if docker network inspect "$network" >/dev/null 2>&1; then docker network rm "$network" >/dev/null; fi
done
