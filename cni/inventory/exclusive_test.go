// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// exclusiveText renders who may have which NIC of phy-net0.
func exclusiveText(s *Snapshot) string {
	var out strings.Builder
	for _, p := range s.physicalNetworks {
		var order []string
		for _, d := range s.Exclusive(p.Name) {
			order = append(order, d.Name)
		}
		fmt.Fprintf(&out, "shared %v exclusive %v order %v %s\n", s.Parents(p.Name), p.Exclusive, order, p.Reason)
	}
	for _, r := range s.Refused() {
		fmt.Fprintf(&out, "refused %s %s: %s\n", r.Network, r.Reason, r.Message)
	}
	return out.String()
}

func TestNICsAreDividedBetweenSharingAndTakingNetworks(t *testing.T) {
	three := []string{"eth1 device up", "eth2 device up", "eth3 device up"}
	for name, test := range map[string]struct {
		networks []string
		devices  []string
		inPods   []string
		parents  []string
		want     string
	}{
		"only sharing Networks": {
			networks: []string{"a macvlan phy-net0"}, devices: three,
			want: "shared [eth1 eth2 eth3] exclusive [] order [] InterfaceUp\n",
		},
		"only taking Networks": {
			networks: []string{"a host-device phy-net0"}, devices: three,
			want: "shared [] exclusive [eth1 eth2 eth3] order [eth3 eth2 eth1] InterfaceUp\n",
		},
		"both: the first NIC is shared, whoever is older": {
			networks: []string{"a host-device phy-net0", "b macvlan phy-net0"}, devices: three,
			want: "shared [eth1] exclusive [eth2 eth3] order [eth3 eth2] InterfaceUp\n",
		},
		"both: the first that is there": {
			networks: []string{"a bridge phy-net0", "b host-device phy-net0"}, devices: three[1:],
			want: "shared [eth2] exclusive [eth3] order [eth3] InterfaceUp\n",
		},
		"Networks of other physical networks do not count": {
			networks: []string{"a host-device phy-net0", "b macvlan phy-net1"}, devices: three,
			want: "shared [] exclusive [eth1 eth2 eth3] order [eth3 eth2 eth1] InterfaceUp\n",
		},
		"one NIC, the sharing Network is older": {
			networks: []string{"a macvlan phy-net0", "b host-device phy-net0"}, devices: three[:1],
			want: "shared [eth1] exclusive [] order [] InterfaceUp\n" +
				"refused b PluginConflict: NIC eth1 is the node's only one, and the older Network a with plugin macvlan is on it: map another NIC, or use another physical network\n",
		},
		"one NIC, the taking Network is older": {
			networks: []string{"a host-device phy-net0", "b macvlan phy-net0", "c bridge phy-net0"}, devices: three[:1],
			want: "shared [] exclusive [eth1] order [eth1] InterfaceUp\n" +
				"refused b PluginConflict: NIC eth1 is the node's only one, and the older Network a with plugin host-device gives it to pods: map another NIC, or use another physical network\n" +
				"refused c PluginConflict: NIC eth1 is the node's only one, and the older Network a with plugin host-device gives it to pods: map another NIC, or use another physical network\n",
		},
		"pods have NICs": {
			networks: []string{"a host-device phy-net0", "b macvlan phy-net0"}, devices: three[:1], inPods: []string{"eth2", "eth3"},
			want: "shared [eth1] exclusive [eth2 eth3] order [eth3 eth2] InterfaceUp\n",
		},
		"pods have all NICs": {
			networks: []string{"a host-device phy-net0"}, inPods: []string{"eth1", "eth2"},
			want: "shared [] exclusive [eth1 eth2] order [eth2 eth1] InterfaceInPod\n",
		},
		"a pod has the NIC that is to be shared from now on": {
			networks: []string{"a host-device phy-net0", "b macvlan phy-net0"}, devices: three[1:], inPods: []string{"eth1"},
			want: "shared [] exclusive [eth2 eth3] order [eth3 eth2] InterfaceUp\n" +
				"refused b PluginConflict: NIC eth1 is inside a pod of a Network with plugin host-device: it is free for others when that pod is gone\n",
		},
		"a link of the host took the name of a NIC in a pod": {
			networks: []string{"a host-device phy-net0"}, devices: []string{"eth1 veth up addr=192.0.2.1/24"}, inPods: []string{"eth1"},
			want: "shared [] exclusive [eth1] order [eth1] InterfaceInPod\n",
		},
		"the shared one is down": {
			networks: []string{"a host-device phy-net0", "b macvlan phy-net0"}, devices: []string{"eth1 device down", "eth2 device up"},
			want: "shared [eth1] exclusive [eth2] order [eth2] InterfaceUp\n" +
				"refused b InterfaceDown: NIC eth1 is down, and the other NICs of the physical network are kept for Network a with plugin host-device\n",
		},
		"what the host uses is nobody's": {
			networks: []string{"a host-device phy-net0"},
			devices:  []string{"eth1 device up addr=192.0.2.1/24", "eth2 device up default", "eth3 device up master=br0:bridge", "br0 bridge up"},
			want: "shared [] exclusive [] order [] InterfaceUp\n" +
				"refused a HostInterface: NIC eth1 carries the host's address 192.0.2.1/24, which it would lose with the NIC inside a pod: map another NIC\n",
		},
		"what other links of the host stand on": {
			networks: []string{"a host-device phy-net0"}, devices: []string{"eth1 device up", "eth2 device up", "mine macvlan up parent=eth1"},
			want: "shared [] exclusive [eth2] order [eth2] InterfaceUp\n",
		},
		"what pods' macvlans stand on": {
			networks: []string{"a macvlan phy-net0", "b host-device phy-net0"}, devices: three, parents: []string{"eth1", "eth3"},
			want: "shared [eth1] exclusive [eth2] order [eth2] InterfaceUp\n",
		},
		"a larger MTU than one of the NICs has": {
			networks: []string{"a host-device phy-net0 9000"}, devices: []string{"eth1 device up mtu=9000", "eth2 device up"},
			want: "shared [] exclusive [eth1 eth2] order [eth2 eth1] InterfaceUp\n" +
				"refused a MTUExceedsInterface: spec.mtu 9000 is larger than the 1500 of NIC eth2: lower it, or raise the NIC's\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := &Input{
				Map:      mustMap(t, "{alias: phy-net0, ref_nic: eth1}, {alias: phy-net0, ref_nic: eth2}, {alias: phy-net0, ref_nic: eth3}"),
				Networks: networks(t, test.networks...), Devices: devices(t, test.devices...), Parents: test.parents,
			}
			for _, nic := range test.inPods {
				in.InPods = append(in.InPods, link.Device{Name: nic, Kind: link.KindDevice, MTU: 1500, Ethernet: true, InPod: true})
			}
			if diff := cmp.Diff(test.want, exclusiveText(Resolve(in))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A NIC that is away stays listed, and stays mapped by whatever selected it.
func TestNICsInPodsStayInTheInventory(t *testing.T) {
	host := devices(t, "eth1 device up driver=fast pci=0000:3b:00.0", "eth2 device up driver=fast pci=0000:3b:00.1")
	away := host[1]
	away.InPod, away.Up = true, false
	physical := []v1alpha1.PhysicalNetwork{{Spec: v1alpha1.PhysicalNetworkSpec{
		NodeInterfaces: []v1alpha1.NodeInterface{{Interface: v1alpha1.InterfaceSelector{Driver: "fast"}}},
	}}}
	physical[0].Name = "phy-net0"
	// The kernel threw it out of a pod that ended, under its name there; the agent has not mended it yet.
	stray := host[1]
	stray.Name = "net1"
	for name, now := range map[string][]link.Device{
		"inside the pod":                 host[:1],
		"on its way":                     host,
		"in the host under another name": {host[0], stray},
	} {
		t.Run(name, func(t *testing.T) {
			s := Resolve(&Input{PhysicalNetworks: physical, Networks: networks(t, "a host-device phy-net0"), Devices: now, InPods: []link.Device{away}})
			var got []string
			for _, nic := range s.interfaces {
				got = append(got, fmt.Sprintf("%s %s inUse=%t %s %s", nic.Name, nic.State, nic.InUse, nic.MAC, nic.PCIAddress))
			}
			want := []string{"eth1 Up inUse=false 02:00:00:00:00:01 0000:3b:00.0", "eth2  inUse=true 02:00:00:00:00:02 0000:3b:00.1"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if p := s.physicalNetworks[0]; !slices.Equal(p.Interfaces, []string{"eth1", "eth2"}) || !slices.Equal(p.Exclusive, p.Interfaces) {
				t.Errorf("mapped are %v, for pods %v", p.Interfaces, p.Exclusive)
			}
		})
	}
}
