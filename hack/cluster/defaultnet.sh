# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# The cluster's default network where the node image brings none: the reference plugins ptp, host-local and portmap,
# routes between the nodes, and masquerading for what leaves the cluster. To be sourced by up.sh and reboot.sh.
# shellcheck shell=bash

# own_default_network IMAGE: any other node image than ours is kind's, and installs its own.
own_default_network() { [[ $1 == netplane/node:* ]]; }

# ptp and not bridge: every packet is routed, so Services work between pods of one node without br_netfilter.
# The addresses' files lie in /run: a restart of the node ends every pod, and their addresses must be free again.
cni_configuration() {
	jq --null-input --arg v4 "$1" --arg v6 "$2" '{
		cniVersion: "1.1.0", name: "default-net",
		plugins: [
			{type: "ptp", ipam: {type: "host-local", dataDir: "/run/cni/networks",
				ranges: [[{subnet: $v4}], [{subnet: $v6}]], routes: [{dst: "0.0.0.0/0"}, {dst: "::/0"}]}},
			{type: "portmap", capabilities: {portMappings: true}, backend: "nftables"}]}'
}

# masquerade V4 V6: pods see each other's own addresses, the rest of the world the node's.
masquerade() {
	cat <<-RULES
		table inet default-net
		delete table inet default-net
		table inet default-net {
			chain postrouting {
				type nat hook postrouting priority srcnat; policy accept;
				ip saddr $1 ip daddr != { $1, 224.0.0.0/4 } masquerade
				ip6 saddr $2 ip6 daddr != { $2, ff00::/8 } masquerade
			}
		}
	RULES
}

# ensure_default_network CLUSTER: safe to repeat; what is there already stays as it is.
ensure_default_network() {
	local cluster="$1" nodes node cidr4 cidr6 routes
	local pods4="10.244.0.0/16" pods6="fd00:10:244::/56"
	# Name, both pod ranges and both addresses of every node, one line each.
	nodes="$(kubectl --context "kind-$cluster" get nodes --output json | jq -r '
		.items[] | [.metadata.name]
			+ (.spec.podCIDRs | sort_by(contains(":")))
			+ ([.status.addresses[] | select(.type == "InternalIP").address] | sort_by(contains(":"))) | join(" ")')"
	while read -r node cidr4 cidr6 _; do
		[[ -n $cidr6 ]] || die "node $node has no pod ranges of both families (yet)"
		routes="$(awk -v self="$node" '$1 != self {print "ip route replace " $2 " via " $4; print "ip route replace " $3 " via " $5}' <<<"$nodes")"
		masquerade "$pods4" "$pods6" | docker exec --interactive "$node" nft -f -
		# An agent that has wrapped this configuration must not find it changed for nothing.
		cni_configuration "$cidr4" "$cidr6" | docker exec --interactive "$node" sh -e -c "
			$routes
			cd /etc/cni/net.d && cat >.default.new
			if cmp -s .default.new 10-default.conflist; then rm .default.new; else mv .default.new 10-default.conflist; fi"
	done <<<"$nodes"
}
