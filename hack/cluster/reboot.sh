#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Cuts the power of a worker and starts it again: hack/cluster/reboot.sh worker|worker2|worker3 [NAME].
#
# What a real node finds at its boot is put there before kubelet starts: its network cards under their names, and what
# the installer of the default network leaves in every boot. All that lay in memory (/run) is gone, as it would be.
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=hack/cluster/physical.sh
source "$ROOT/hack/cluster/physical.sh"
# shellcheck source=hack/cluster/defaultnet.sh
source "$ROOT/hack/cluster/defaultnet.sh"

worker="${1:-}" cluster="${2:-netplane}"
[[ -n $worker && -n $(nics_of "$worker") ]] || die "usage: reboot.sh ${WORKERS[0]}|${WORKERS[1]}|${WORKERS[2]} [CLUSTER]"
node="$cluster-$worker"
need docker "run hack/cluster/engine.sh"
eval "$("$ROOT/hack/cluster/env.sh")"
image="$(docker inspect --format '{{.Config.Image}}' "$node")"

booted() {
	case "$(docker exec "$node" systemctl is-system-running 2>/dev/null)" in
	running | degraded) ;;
	*) return 1 ;;
	esac
}

reboot() {
	local phy network i
	docker exec "$node" systemctl --quiet disable kubelet
	docker kill "$node" >/dev/null
	# Plugged in at its start, a card would get addresses, and kind's entry point might take one of them for the node's own.
	for network in $(docker inspect --format '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}' "$node"); do
		for phy in "${PHYSICAL[@]}"; do
			if [[ $network == "$(phy_network "$cluster" "$phy")" ]]; then docker network disconnect "$network" "$node"; fi
		done
	done
	docker start "$node" >/dev/null
	for ((i = 0; i < 300; i++)); do
		if booted; then break; fi
		sleep 0.1
	done
	booted || die "node $node did not boot within 30s: docker logs $node"
	ensure_cards "$cluster" "$worker"
	if own_default_network "$image"; then ensure_default_network "$cluster"; fi
	docker exec "$node" touch "$MARK"
	docker exec "$node" systemctl --quiet enable --now kubelet
}

with_lock "cluster-$cluster" reboot
say "node $node was rebooted; kubelet brings its pods back ($((SECONDS))s)"
