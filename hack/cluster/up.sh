#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Brings up the test cluster: hack/cluster/up.sh [NAME]. On one that is there and well it mends what is missing within
# seconds; one that is not well is made anew. Its kubectl context is kind-NAME.
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=hack/cluster/physical.sh
source "$ROOT/hack/cluster/physical.sh"
# shellcheck source=hack/cluster/defaultnet.sh
source "$ROOT/hack/cluster/defaultnet.sh"

cluster="${1:-netplane}"
NODES=("$cluster-control-plane" "$cluster-worker" "$cluster-worker2" "$cluster-worker3")

kube() { kubectl --context "kind-$cluster" --request-timeout=10s "$@"; }

# trouble IMAGE: why the cluster that is there cannot be used; nothing if it can.
trouble() {
	local node have
	for node in "${NODES[@]}"; do
		have="$(docker inspect --format '{{.State.Running}} {{.Config.Image}}' "$node" 2>/dev/null)" || {
			echo "node $node is missing"
			return
		}
		[[ $have == true* ]] || { echo "node $node is not running"; return; }
		[[ $have == "true $1" ]] || { echo "node $node runs another image than $1"; return; }
		docker exec "$node" test -e "$MARK" || { echo "node $node has been restarted, or was never finished"; return; }
	done
	kube get --raw /readyz >/dev/null 2>&1 || echo "its API server does not answer"
}

# Every node's systemd, containerd, kubelet and kube-proxy watch files, and all count as one user's: many kernels' default
# of 128 is used up by this cluster, and then programs die of "too many open files".
INSTANCES=1024
raise_watch_limit() {
	local have
	have="$(cat /proc/sys/fs/inotify/max_user_instances 2>/dev/null || echo "$INSTANCES")"
	if ((have >= INSTANCES)); then return; fi
	if sysctl -q -w "fs.inotify.max_user_instances=$INSTANCES" 2>/dev/null; then
		say "fs.inotify.max_user_instances raised from $have to $INSTANCES until the next boot"
	else
		say "warning: fs.inotify.max_user_instances is $have; if pods fail with \"too many open files\": sudo sysctl -w fs.inotify.max_user_instances=$INSTANCES"
	fi
}

create() {
	local config
	config="$(mktemp)"
	sed "s/\${DISABLE_DEFAULT_CNI}/$(own_default_network "$image" && echo true || echo false)/" "$ROOT/hack/cluster/kind.yaml" >"$config"
	step "creating cluster $cluster (one control plane, three workers)" \
		kind create cluster --name "$cluster" --image "$image" --config "$config"
	rm -f "$config"
}

# Prints what is not ready when the time is up.
wait_ready() {
	local started=$SECONDS
	if kube --request-timeout=0 wait node --all --for=condition=Ready --timeout=120s >/dev/null 2>&1 &&
		kube --request-timeout=0 wait pod --all --namespace kube-system --for=condition=Ready --timeout=180s >/dev/null 2>&1; then
		say "all nodes and system pods are ready (waited $((SECONDS - started))s)"
		return
	fi
	kube get nodes --output wide >&2 || true
	kube get pods --all-namespaces --output wide >&2 || true
	kube get events --all-namespaces --field-selector type=Warning 2>/dev/null | tail -n 20 >&2 || true
	die "cluster $cluster was not ready in time: see above, and: docker exec $cluster-control-plane journalctl -u kubelet"
}

up() {
	local why node started=$SECONDS
	raise_watch_limit
	if kind get clusters 2>/dev/null | grep -qx "$cluster"; then
		# First, as a kubeconfig that lost the cluster is no trouble of the cluster's.
		kind export kubeconfig --name "$cluster" >/dev/null 2>&1 || true
		why="$(trouble "$image")"
		if [[ -n $why ]]; then
			say "cluster $cluster is broken ($why): making it anew"
			step "removing cluster $cluster" kind delete cluster --name "$cluster"
			create
		else
			say "cluster $cluster is there"
		fi
	else
		create
	fi
	if own_default_network "$image"; then ensure_default_network "$cluster"; fi
	ensure_physical "$cluster"
	"$ROOT/hack/cluster/load.sh" "$cluster" netplane/testbox:dev
	wait_ready
	for node in "${NODES[@]}"; do docker exec "$node" touch "$MARK"; done
	say "cluster $cluster is up, kubectl context kind-$cluster ($((SECONDS - started))s)"
}

"$ROOT/hack/cluster/engine.sh"
provide jq
image="$("$ROOT/hack/cluster/nodeimage.sh")"
"$ROOT/hack/cluster/testbox.sh" "$image"
eval "$("$ROOT/hack/cluster/env.sh")"
with_lock "cluster-$cluster" up
