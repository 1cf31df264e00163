#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Runs the talk's example on a cluster that has netplane, and shows it with kubectl: hack/demo.sh [CLUSTER].
# The closing part of `make demo`; safe to repeat.
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cluster="${1:-netplane}"
need jq "install it with your package manager"
eval "$("$ROOT/hack/cluster/env.sh")"

kube() { kubectl --context "kind-$cluster" "$@"; }

heading() { printf '\n\033[1m# %s\033[0m\n' "$1"; }

# show TITLE ARG...: a heading, the command as one would type it, and what it prints.
show() {
	local arg
	heading "$1"
	shift
	printf '$ kubectl'
	for arg in "$@"; do
		if [[ $arg == *[!a-zA-Z0-9,=/.:-]* ]]; then arg="'$arg'"; fi
		printf ' %s' "$arg"
	done
	printf '\n'
	kube "$@"
}

# trouble: what a person would look at if the example does not come up.
trouble() {
	kube get networks,physicalnetworks,nodenetworks,pods --output wide >&2 || true
	kube get pods --namespace netplane-system --output wide >&2 || true
	kube get events --field-selector type=Warning 2>/dev/null | tail -n 20 >&2 || true
	die "$1 (what there is stands above)"
}

# await TEXT ARG...: kubectl wait, with an explanation if it was in vain.
await() {
	local text="$1"
	shift
	say "waiting for $text"
	kube wait --timeout=180s "$@" >/dev/null || trouble "$text did not come"
}

# The slices follow the pods within a second or so.
await_slices() {
	local i ready
	say "waiting for the Service's addresses"
	for ((i = 0; i < 60; i++)); do
		ready="$(kube get endpointslices --selector kubernetes.io/service-name=my-service,endpointslice.kubernetes.io/managed-by=netplane.io \
			--output jsonpath='{.items[*].endpoints[*].addresses}')"
		if [[ $(wc -w <<<"$ready") -ge 16 ]]; then return; fi
		sleep 1
	done
	trouble "the slices of my-service did not fill"
}

say "applying manifests/examples"
kube apply --kustomize "$ROOT/manifests/examples" >&2
await "the networks" --for=condition=Ready network/management network/data
await "the example's pods" --for=condition=Ready pod/test-pod
await "the example's Deployment" --for=condition=Available deployment/myapp
await_slices

# attachments: one line per interface of the example's pods. What a pod got stands in its annotation as JSON.
attachments() {
	heading 'Their networks, interfaces and addresses (annotation network-status)'
	printf '$ kubectl get pods --selector app=MyApp --output json | jq ...\n'
	printf '%-24s %-18s %-10s %-12s %s\n' POD NODE INTERFACE NETWORK ADDRESSES
	kube get pods --selector app=MyApp --output json | jq --raw-output '
		.items[] | .metadata.name as $pod | .spec.nodeName as $node
		| .metadata.annotations["k8s.v1.cni.cncf.io/network-status"] // "[]" | fromjson[]
		| [$pod, $node, .interface, .name, (.ips | join(" "))] | @tsv' |
		while IFS=$'\t' read -r pod node interface network addresses; do
			printf '%-24s %-18s %-10s %-12s %s\n' "$pod" "$node" "$interface" "$network" "$addresses"
		done
}

show "The nodes; the labels say which NIC backs which physical network" \
	get nodes --label-columns physical.netplane.io/phy-net0,physical.netplane.io/phy-net1
show "What the nodes offer" get nodenetworks
show "One node's networks" get nodenetwork "$cluster-worker3" \
	--output 'jsonpath={range .status.physicalNetworks[*]}{.name}{"\t"}{.interfaces}{"\t"}ready={.ready}{"\n"}{end}{range .status.interfaces[*]}{.name}{"\t"}{.mac}{"\tmtu "}{.mtu}{"\t"}{.state}{"\n"}{end}'
show "The physical networks" get physicalnetworks
show "The logical networks and the use of their addresses" get networks
show "Which node holds which addresses" get ipblocks
show "The pods: the IP is the one on eth0, here of management" get pods --selector app=MyApp --output wide
attachments
show "Inside one of them" exec test-pod -- ip address show dev eth0
show "... and its second interface" exec test-pod -- ip address show dev eth1
show "The Service's addresses per network" get endpointslices \
	--selector kubernetes.io/service-name=my-service,endpointslice.kubernetes.io/managed-by=netplane.io --output \
	'custom-columns=SLICE:.metadata.name,NETWORK:.metadata.labels.netplane\.io/network,FAMILY:.addressType,ADDRESSES:.endpoints[*].addresses'

cat <<END

demo: ok
The cluster is still there, kubectl context kind-$cluster. Some things to try:
  kubectl --context kind-$cluster get netplane
  kubectl --context kind-$cluster scale deployment myapp --replicas 6
  docker exec $cluster-worker ip link set eth2 down    # a pulled cable: new pods for data go to worker3 only
make demo-down removes it.
END
