// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"net/netip"
	"strconv"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

func nic(name string, mtu int, ends ...string) link.Device {
	d := link.Device{Name: name, Kind: link.KindDevice, Up: true, Ethernet: true, MTU: mtu}
	for _, end := range ends {
		d.TunnelEnds = append(d.TunnelEnds, netip.MustParsePrefix(end))
	}
	return d
}

func TestTunnelsOfVXLANNetworks(t *testing.T) {
	port := nic("eth1", 1500, "fe80::1/64")
	port.Master, port.MasterKind = "np-eth1", link.KindBridge
	bridge := nic("np-eth1", 1500, "10.20.0.1/32", "fe80::1/64")
	bridge.Kind = link.KindBridge
	down := nic("eth1", 1500, "192.168.0.1/24")
	down.Up = false
	for name, test := range map[string]struct {
		devices     []link.Device
		config      string
		mtu         int32
		unavailable string
		want        string
	}{
		"the NIC's IPv4 address":                  {devices: []link.Device{nic("eth1", 1500, "192.168.0.1/24", "fe80::1/64")}, want: "eth1 192.168.0.1 1500"},
		"the family that is asked for":            {devices: []link.Device{nic("eth1", 1500, "192.168.0.1/24", "fe80::1/64")}, config: `{"underlay":"IPv6"}`, want: "eth1 fe80::1 1500"},
		"the bridge of a NIC has it":              {devices: []link.Device{port, bridge}, want: "np-eth1 fe80::1 1500"},
		"a NIC that is up comes first":            {devices: []link.Device{down, nic("eth2", 9000, "192.168.1.1/24")}, want: "eth2 192.168.1.1 9000"},
		"a second NIC, as the first one has none": {devices: []link.Device{nic("eth1", 1500), nic("eth2", 1500, "fd00::1/64")}, want: "eth2 fd00::1 1500"},
		"no address":                      {devices: []link.Device{nic("eth1", 1500)}, want: "NoTunnelAddress: eth1 has no IPv4 or IPv6 address that a vxlan tunnel could end at: give it one, or switch IPv6 on, which makes a link-local one"},
		"none of the family":              {devices: []link.Device{nic("eth1", 1500, "fe80::1/64")}, config: `{"underlay":"IPv4"}`, want: "NoTunnelAddress: eth1 has no IPv4 address that a vxlan tunnel could end at: give it one, or switch IPv6 on, which makes a link-local one"},
		"an MTU that fits":                {devices: []link.Device{nic("eth1", 1500, "192.168.0.1/24")}, mtu: 1450, want: "eth1 192.168.0.1 1500"},
		"an MTU without room for headers": {devices: []link.Device{nic("eth1", 1500, "192.168.0.1/24")}, mtu: 1451, want: "MTUExceedsInterface: spec.mtu 1451 is larger than 1450, which the tunnel's headers leave of the 1500 of eth1: lower it, or raise the NIC's"},
		"a kernel without vxlan":          {devices: []link.Device{nic("eth1", 1500, "192.168.0.1/24")}, unavailable: link.KindVXLAN, want: "PluginUnavailable: the node's kernel cannot make links of kind vxlan: load or build its module"},
	} {
		t.Run(name, func(t *testing.T) {
			blue := v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "blue", UID: "u1"}, Spec: v1alpha1.NetworkSpec{
				PhysicalNet: "p", Plugin: v1alpha1.PluginVXLAN, Subnet: "10.70.0.0/16", MTU: test.mtu,
			}}
			if test.config != "" {
				blue.Spec.PluginConfig = &apiextensionsv1.JSON{Raw: []byte(test.config)}
			}
			data := v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: v1alpha1.NetworkSpec{PhysicalNet: "q", Plugin: v1alpha1.PluginBridge, Subnet: "10.20.0.0/16"}}
			in := Input{Networks: []v1alpha1.Network{blue, data}, Devices: test.devices, Unavailable: map[string]bool{test.unavailable: true}}
			in.Map = mustMap(t, "{alias: p, ref_nic: eth1}")
			if len(test.devices) > 1 && test.devices[1].Name == "eth2" {
				in.Map = mustMap(t, "{alias: p, ref_nic: eth1}, {alias: p, ref_nic: eth2}")
			}
			s := Resolve(&in)
			got := ""
			if tunnel, ok := s.Tunnel("blue"); ok {
				got = tunnel.Device + " " + tunnel.Address.String() + " " + strconv.Itoa(tunnel.MTU)
			}
			if reason, message, refused := s.Refusal("blue"); refused {
				got += reason + ": " + message
			}
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}
