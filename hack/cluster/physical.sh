# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# The physical networks of the test cluster: one docker network each, one network card per node and network.
# To be sourced by up.sh, reboot.sh and down.sh.
# shellcheck shell=bash

# nics_of WORKER: "nic=network ..." of that node. The third worker's cards are the other way round, the second has one
# only, so that whatever takes a card's name for its network fails.
nics_of() {
	case "$1" in
	worker) echo "eth1=phy0 eth2=phy1" ;;
	worker2) echo "eth1=phy0" ;;
	worker3) echo "eth1=phy1 eth2=phy0" ;;
	esac
}
PHYSICAL=(phy0 phy1)

# mtu_of PHY: the second one carries jumbo frames.
mtu_of() { if [[ $1 == phy1 ]]; then echo 9000; else echo 1500; fi; }

WORKERS=(worker worker2 worker3)
# Left in each node's memory once it is all up: a node that was restarted by anything but reboot.sh lacks it.
# shellcheck disable=SC2034 # up.sh and reboot.sh use it
MARK=/run/netplane-cluster

# phy_network CLUSTER PHY: the docker network's name. It must sort after "kind": docker sends a container's default route
# through the first of its networks by name.
phy_network() {
	case "$1" in
	netplane*) echo "$1-$2" ;;
	*) echo "netplane-$1-$2" ;;
	esac
}

# Docker gives every network addresses (only new engines can do without); ensure_nic takes them off the cards again. Not
# --internal: its rules drop every frame with other addresses than the network's own. IPv6 is asked for as docker would
# switch it off on the cards otherwise; its prefix is a hash of the name, as old engines choose none.
ensure_physical_networks() {
	local cluster="$1" phy name hash have
	for phy in "${PHYSICAL[@]}"; do
		name="$(phy_network "$cluster" "$phy")"
		if have="$(docker network inspect --format '{{index .Options "com.docker.network.driver.mtu"}}' "$name" 2>/dev/null)"; then
			[[ $have == "$(mtu_of "$phy")" ]] ||
				die "docker network $name is of an older release (MTU ${have:-1500}, want $(mtu_of "$phy")); remove the cluster first: make demo-down"
			continue
		fi
		hash="$(digest "$name")"
		docker network create --driver bridge --opt com.docker.network.bridge.enable_ip_masquerade=false \
			--opt com.docker.network.driver.mtu="$(mtu_of "$phy")" \
			--ipv6 --subnet "fd${hash:0:2}:${hash:2:4}:${hash:6:4}::/64" "$name" >/dev/null
	done
}

# mac_on NODE NETWORK: the address of the node's card on a docker network; nothing if it has none.
mac_on() { docker inspect --format "{{with index .NetworkSettings.Networks \"$2\"}}{{.MacAddress}}{{end}}" "$1"; }

# nic_with_mac NODE MAC: a bridge over a card has the same address, but is no veth.
nic_with_mac() {
	docker exec "$1" ip -json link show type veth |
		jq --raw-output --arg mac "$2" '.[] | select(.address == $mac) | .ifname'
}

# ensure_nic NODE NIC NETWORK: plugged in, of the right name (docker counts on when a card is plugged in again), without
# global addresses, and up.
ensure_nic() {
	local node="$1" nic="$2" network="$3" mac have
	mac="$(mac_on "$node" "$network")"
	if [[ -z $mac ]]; then
		docker network connect "$network" "$node"
		mac="$(mac_on "$node" "$network")"
	fi
	have="$(nic_with_mac "$node" "$mac")"
	[[ -n $have ]] || die "node $node has no network card on $network, though docker says so; is it in a pod?"
	docker exec "$node" sh -e -c "
		if [ $have != $nic ]; then ip link set $have down; ip link set $have name $nic; fi
		ip address flush dev $nic scope global
		ip link set $nic up"
}

# The talk's form of the map: which card is on which physical network.
physical_map() {
	local pair
	echo "provider:"
	for pair in $(nics_of "$1"); do
		echo "- {alias: phy-net${pair#*=phy}, ref_nic: ${pair%%=*}}"
	done | sort
}

# ensure_cards CLUSTER WORKER: its cards and its map.
ensure_cards() {
	local cluster="$1" worker="$2" pair
	for pair in $(nics_of "$worker"); do
		ensure_nic "$cluster-$worker" "${pair%%=*}" "$(phy_network "$cluster" "${pair#*=}")"
	done
	# By rename, as the agent may be reading it; and only if it differs, as it watches it.
	physical_map "$worker" | docker exec --interactive "$cluster-$worker" sh -c '
		mkdir -p /etc/netplane && cd /etc/netplane && cat >.map.new || exit
		if cmp -s .map.new physical-network-map.yaml; then rm .map.new; else mv .map.new physical-network-map.yaml; fi'
}

ensure_physical() {
	local cluster="$1" worker
	ensure_physical_networks "$cluster"
	for worker in "${WORKERS[@]}"; do ensure_cards "$cluster" "$worker"; done
}
