// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// A node in these tests: one line per link, "name kind state [key=value ...]".
func devices(t *testing.T, lines ...string) []link.Device {
	t.Helper()
	var out []link.Device
	for i, line := range lines {
		f := strings.Fields(line)
		d := link.Device{
			Name: f[0], Index: i + 1, Kind: f[1], Up: f[2] == "up", MTU: 1500, Ethernet: true,
			MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i + 1)},
		}
		d.PermMAC = d.MAC
		d.Loopback = d.Name == "lo"
		d.Sysfs.Physical = f[1] == link.KindDevice
		for _, kv := range f[3:] {
			key, value, _ := strings.Cut(kv, "=")
			switch key {
			case "master":
				d.Master, d.MasterKind, _ = strings.Cut(value, ":")
			case "parent":
				d.Parent = value
			case "addr":
				d.Addresses = append(d.Addresses, netip.MustParsePrefix(value))
			case "tag":
				if _, err := fmt.Sscan(value, &d.Tag); err != nil {
					t.Fatal(err)
				}
			case "ours":
				d.Made = true
			case "default":
				d.DefaultRoute = true
			case "driver":
				d.Sysfs.Driver = value
			case "pci":
				d.Sysfs.PCIAddress = value
			case "perm":
				mac, err := net.ParseMAC(value)
				if err != nil {
					t.Fatal(err)
				}
				d.PermMAC = mac
			case "mtu":
				if _, err := fmt.Sscan(value, &d.MTU); err != nil {
					t.Fatal(err)
				}
			default:
				t.Fatalf("unknown key %q", key)
			}
		}
		out = append(out, d)
	}
	return out
}

func born(order int) metav1.Time {
	return metav1.NewTime(time.Date(2026, 1, 1, 0, 0, order, 0, time.UTC))
}

// networks makes Networks from "name plugin physical [mtu] [vlan=N] [mode=M]",
// oldest first.
func networks(t *testing.T, lines ...string) []v1alpha1.Network {
	t.Helper()
	var out []v1alpha1.Network
	for i, line := range lines {
		f := strings.Fields(line)
		n := v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: f[0], CreationTimestamp: born(i)}}
		n.Spec = v1alpha1.NetworkSpec{Plugin: f[1], PhysicalNet: f[2]}
		for _, extra := range f[3:] {
			var err error
			switch key, value, _ := strings.Cut(extra, "="); key {
			case "vlan":
				_, err = fmt.Sscan(value, &n.Spec.VLAN)
			case "mode":
				n.Spec.PluginConfig = &apiextensionsv1.JSON{Raw: fmt.Appendf(nil, `{"mode": %q}`, value)}
			default:
				_, err = fmt.Sscan(extra, &n.Spec.MTU)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, n)
	}
	return out
}

func mustMap(t *testing.T, text string) *Map {
	t.Helper()
	m, err := ParseMap([]byte("provider: [" + text + "]"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// text renders what a Snapshot says, one fact per line.
func (s *Snapshot) text() string {
	var out strings.Builder
	for _, i := range s.interfaces {
		fmt.Fprintf(&out, "nic %s %s\n", i.Name, i.State)
	}
	for _, p := range s.physicalNetworks {
		fmt.Fprintf(&out, "physical %s %v ready=%t %s parents=%v\n", p.Name, p.Interfaces, p.Ready, p.Reason, s.Parents(p.Name))
		for _, nic := range s.Parents(p.Name) {
			for _, tag := range slices.Sorted(maps.Keys(tagsOf(s, nic))) {
				if s.uses[place{nic, tag}].bridge {
					fmt.Fprintf(&out, "bridge %s\n", placeText(nic, int(tag)))
				}
			}
		}
	}
	for _, lost := range s.lost {
		fmt.Fprintf(&out, "lost %s\n", placeText(lost.NIC, lost.Tag))
	}
	for _, r := range s.Refused() {
		fmt.Fprintf(&out, "refused %s %s: %s\n", r.Network, r.Reason, r.Message)
	}
	for _, w := range s.warnings {
		fmt.Fprintf(&out, "warning %s\n", w)
	}
	return out.String()
}

func tagsOf(s *Snapshot, nic string) map[int32]bool {
	out := map[int32]bool{}
	for at := range s.uses {
		if at.nic == nic {
			out[at.tag] = true
		}
	}
	return out
}

func placeText(nic string, tag int) string {
	if tag == 0 {
		return nic
	}
	return fmt.Sprintf("%s tag %d", nic, tag)
}

func lines(text ...string) string {
	if len(text) == 0 {
		return ""
	}
	return strings.Join(text, "\n") + "\n"
}

func TestResolveMapping(t *testing.T) {
	all := []v1alpha1.NodeInterface{{Interface: v1alpha1.InterfaceSelector{Name: "eth1"}}}
	rack := func(name string, s v1alpha1.InterfaceSelector) v1alpha1.NodeInterface {
		return v1alpha1.NodeInterface{NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"rack": name}}, Interface: s}
	}
	physical := func(order int, name string, entries ...v1alpha1.NodeInterface) v1alpha1.PhysicalNetwork {
		return v1alpha1.PhysicalNetwork{
			ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: born(order)},
			Spec:       v1alpha1.PhysicalNetworkSpec{NodeInterfaces: entries},
		}
	}
	for name, test := range map[string]struct {
		file     string
		noFile   bool
		physical []v1alpha1.PhysicalNetwork
		devices  []string
		want     string
	}{
		"NIC up": {
			file: "{alias: phy-net0, ref_nic: eth1}", devices: []string{"lo loopback up", "eth1 device up"},
			want: lines("nic eth1 Up", "physical phy-net0 [eth1] ready=true InterfaceUp parents=[eth1]"),
		},
		"NIC down": {
			file: "{alias: phy-net0, ref_nic: eth1}", devices: []string{"eth1 device down"},
			want: lines("nic eth1 Down", "physical phy-net0 [eth1] ready=false InterfaceDown parents=[eth1]"),
		},
		"NIC missing": {
			file: "{alias: phy-net0, ref_nic: eth1}", devices: []string{"eth0 device up"},
			want: lines("nic eth0 Up", "physical phy-net0 [eth1] ready=false InterfaceNotFound parents=[]"),
		},
		"one of two NICs up is enough, and comes first": {
			file: "{alias: storage, ref_nic: eth1}, {alias: storage, ref_nic: eth2}, {alias: storage, ref_nic: eth3}", devices: []string{"eth1 device down", "eth3 device up"},
			want: lines("nic eth1 Down", "nic eth3 Up", "physical storage [eth1 eth2 eth3] ready=true InterfaceUp parents=[eth3 eth1]"),
		},
		"the other way round": {
			file: "{alias: phy-net0, ref_nic: eth2}, {alias: phy-net1, ref_nic: eth1}", devices: []string{"eth1 device up", "eth2 device down"},
			want: lines("nic eth1 Up", "nic eth2 Down",
				"physical phy-net0 [eth2] ready=false InterfaceDown parents=[eth2]",
				"physical phy-net1 [eth1] ready=true InterfaceUp parents=[eth1]"),
		},
		"nodeInterfaces decide where there is no file": {
			noFile: true, physical: []v1alpha1.PhysicalNetwork{physical(0, "phy-net0", all...)}, devices: []string{"eth1 device up"},
			want: lines("nic eth1 Up", "physical phy-net0 [eth1] ready=true InterfaceUp parents=[eth1]"),
		},
		"the file overrides nodeInterfaces of networks that it does not name, too": {
			file: "{alias: phy-net1, ref_nic: eth2}", physical: []v1alpha1.PhysicalNetwork{physical(0, "phy-net0", all...)}, devices: []string{"eth1 device up", "eth2 device up"},
			want: lines("nic eth1 Up", "nic eth2 Up", "physical phy-net1 [eth2] ready=true InterfaceUp parents=[eth2]"),
		},
		"an empty file maps nothing": {
			file: "", physical: []v1alpha1.PhysicalNetwork{physical(0, "phy-net0", all...)}, devices: []string{"eth1 device up"},
			want: lines("nic eth1 Up"),
		},
		"the first entry whose nodeSelector fits wins": {
			noFile: true, physical: []v1alpha1.PhysicalNetwork{physical(0, "phy-net0",
				rack("b", v1alpha1.InterfaceSelector{Name: "eth7"}), rack("a", v1alpha1.InterfaceSelector{Name: "eth2"}), all[0])},
			devices: []string{"eth1 device up", "eth2 device up"},
			want:    lines("nic eth1 Up", "nic eth2 Up", "physical phy-net0 [eth2] ready=true InterfaceUp parents=[eth2]"),
		},
		"no entry fits": {
			noFile: true, physical: []v1alpha1.PhysicalNetwork{physical(0, "phy-net0", rack("b", v1alpha1.InterfaceSelector{Name: "eth1"}))}, devices: []string{"eth1 device up"},
			want: lines("nic eth1 Up"),
		},
		"a nodeSelector that cannot be read maps nothing and says so": {
			noFile: true, physical: []v1alpha1.PhysicalNetwork{physical(0, "phy-net0", v1alpha1.NodeInterface{
				NodeSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "rack", Operator: "Is"}}},
				Interface:    v1alpha1.InterfaceSelector{Name: "eth1"},
			})},
			want: lines(`warning PhysicalNetwork phy-net0: nodeInterfaces entry 1: reading nodeSelector: "Is" is not a valid label selector operator`),
		},
		"by permanent MAC address, not that of a bridge on top": {
			noFile: true, physical: []v1alpha1.PhysicalNetwork{physical(0, "phy-net0", v1alpha1.NodeInterface{Interface: v1alpha1.InterfaceSelector{MACAddress: "0A:00:00:00:00:0b"}})},
			devices: []string{"eth1 device up perm=0a:00:00:00:00:0b master=np-eth1:bridge", "np-eth1 bridge up perm=0a:00:00:00:00:0b", "br0 bridge up perm=0a:00:00:00:00:0b"},
			want:    lines("nic eth1 Up", "physical phy-net0 [eth1] ready=true InterfaceUp parents=[eth1]", "bridge eth1"),
		},
		"by PCI address": {
			noFile: true, physical: []v1alpha1.PhysicalNetwork{physical(0, "phy-net0", v1alpha1.NodeInterface{Interface: v1alpha1.InterfaceSelector{PCIAddress: "0000:3b:00.1"}})},
			devices: []string{"ens1f0 device up pci=0000:3b:00.0", "ens1f1 device up pci=0000:3b:00.1"},
			want:    lines("nic ens1f0 Up", "nic ens1f1 Up", "physical phy-net0 [ens1f1] ready=true InterfaceUp parents=[ens1f1]"),
		},
		"by driver, several, without the ports of a bond": {
			noFile: true, physical: []v1alpha1.PhysicalNetwork{physical(0, "phy-net0", v1alpha1.NodeInterface{Interface: v1alpha1.InterfaceSelector{Driver: "ice"}})},
			devices: []string{"ens1 device up driver=ice", "ens2 device up driver=ice master=bond0:bond", "ens3 device down driver=ice", "bond0 bond up"},
			want: lines("nic bond0 Up", "nic ens1 Up", "nic ens2 Up", "nic ens3 Down",
				"physical phy-net0 [ens1 ens3] ready=true InterfaceUp parents=[ens1 ens3]"),
		},
		"nothing selected": {
			noFile: true, physical: []v1alpha1.PhysicalNetwork{physical(0, "phy-net0", v1alpha1.NodeInterface{Interface: v1alpha1.InterfaceSelector{Driver: "mlx5_core"}})}, devices: []string{"eth1 device up driver=ice"},
			want: lines("nic eth1 Up", "physical phy-net0 [] ready=false InterfaceNotFound parents=[]"),
		},
		"the older PhysicalNetwork keeps a NIC that two select": {
			noFile: true, physical: []v1alpha1.PhysicalNetwork{physical(1, "a-newer", all...), physical(0, "b-older", all...)}, devices: []string{"eth1 device up"},
			want: lines("nic eth1 Up",
				"physical a-newer [] ready=false InterfaceNotFound parents=[]",
				"physical b-older [eth1] ready=true InterfaceUp parents=[eth1]",
				"warning NIC eth1 is selected by PhysicalNetworks b-older and a-newer: b-older, the older, keeps it"),
		},
		"links that are no NICs are not listed, unless mapped": {
			file: "{alias: phy-net0, ref_nic: br-data}",
			devices: []string{
				"eth0 veth up", "eth1 veth up master=np-eth1:bridge", "enp1s0 veth down", "veth0a1b2c veth up master=cni0:bridge", "caliabc veth up",
				"np-eth1 bridge up", "cni0 bridge up", "br-data bridge up", "mv0 macvlan up parent=eth1", "vx0 vxlan up", "dum0 dummy up", "bond0 bond up", "eth1.100 vlan up parent=eth1",
			},
			want: lines("nic bond0 Up", "nic br-data Up", "nic enp1s0 Down", "nic eth0 Up", "nic eth1 Up", "nic eth1.100 Up",
				"physical phy-net0 [br-data] ready=true InterfaceUp parents=[br-data]", "bridge br-data"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := Input{NodeLabels: map[string]string{"rack": "a"}, PhysicalNetworks: test.physical, Devices: devices(t, test.devices...)}
			if !test.noFile {
				in.Map = mustMap(t, test.file)
			}
			if diff := cmp.Diff(test.want, Resolve(&in).text()); diff != "" {
				t.Errorf("snapshot (-want +got):\n%s", diff)
			}
		})
	}
}

func TestResolveModesAndRefusals(t *testing.T) {
	const conflict = "a NIC cannot be a macvlan parent and a bridge port at once: use plugin macvlan, or another physical network"
	const noMix = "a NIC takes no links of macvlan and ipvlan at once: "
	const alone = "a macvlan in passthru mode takes no others beside it: choose another mode, or another physical network"
	for name, test := range map[string]struct {
		networks    []string
		devices     []string
		unavailable string
		want        string
	}{
		"the oldest Network is a bridge: macvlans go onto it": {
			networks: []string{"data bridge p", "management macvlan p"}, devices: []string{"eth1 device up"},
			want: lines("bridge eth1"),
		},
		"the oldest Network is a macvlan: bridges are refused": {
			networks: []string{"management macvlan p", "data bridge p", "more macvlan p"}, devices: []string{"eth1 device up"},
			want: lines("refused data PluginConflict: NIC eth1 is used by the older Network management with plugin macvlan, and " + conflict),
		},
		"a bridge that stands already decides against the oldest Network": {
			networks: []string{"management macvlan p", "data bridge p"}, devices: []string{"eth1 device up master=br0:bridge addr=192.0.2.7/24", "br0 bridge up"},
			want: lines("bridge eth1"),
		},
		"Networks of other physical networks do not count": {
			networks: []string{"elsewhere macvlan other", "data bridge p"}, devices: []string{"eth1 device up"},
			want: lines("bridge eth1"),
		},
		"Networks of other plugins do not count": {
			networks: []string{"overlay vxlan p", "data bridge p"}, devices: []string{"eth1 device up"},
			want: lines("bridge eth1", "refused overlay NoTunnelAddress: eth1 has no IPv4 or IPv6 address that a vxlan tunnel could end at: give it one, or switch IPv6 on, which makes a link-local one"),
		},
		"a NIC with a host address is never bridged, and serves macvlans": {
			networks: []string{"data bridge p", "management macvlan p"}, devices: []string{"eth1 device up addr=192.0.2.7/24"},
			want: lines("refused data HostInterface: NIC eth1 carries the host's address 192.0.2.7/24, which would be lost in a bridge: use plugin macvlan, or a NIC without addresses"),
		},
		"a NIC with the default route is never bridged": {
			networks: []string{"data bridge p"}, devices: []string{"eth1 device up default"},
			want: lines("refused data HostInterface: NIC eth1 carries the host's default route, which would be lost in a bridge: use plugin macvlan, or another NIC"),
		},
		"a port of a bond is never bridged": {
			networks: []string{"data bridge p"}, devices: []string{"bond0 bond up", "eth1 device up master=bond0:bond"},
			want: lines("refused data HostInterface: NIC eth1 is a port of bond0 (bond): map bond0 instead"),
		},
		"a macvlan of the host keeps the NIC from being bridged": {
			networks: []string{"data bridge p"}, devices: []string{"eth1 device up", "mgmt0 macvlan up parent=eth1"},
			want: lines("refused data PluginConflict: NIC eth1 carries the host's macvlan interface mgmt0 and so cannot be a bridge port: use plugin macvlan, or remove mgmt0"),
		},
		"our own shim does not": {
			networks: []string{"data bridge p"}, devices: []string{"eth1 device up", "nps0123456789ab macvlan up parent=eth1"},
			want: lines("bridge eth1"),
		},
		"a NIC that has come back belongs into the bridge that was made of it": {
			networks: []string{"management macvlan p", "data bridge p"}, devices: []string{"eth1 device up", "np-eth1 bridge up"},
			want: lines("bridge eth1", "lost eth1"),
		},
		"a NIC that has come back with a host address does not": {
			networks: []string{"data bridge p"}, devices: []string{"eth1 device up addr=192.0.2.7/24", "np-eth1 bridge up"},
			want: lines("refused data HostInterface: NIC eth1 carries the host's address 192.0.2.7/24, which would be lost in a bridge: use plugin macvlan, or a NIC without addresses"),
		},
		"MTU above the NIC's": {
			networks: []string{"jumbo macvlan p 9000", "fits macvlan p 1500"}, devices: []string{"eth1 device up"},
			want: lines("refused jumbo MTUExceedsInterface: spec.mtu 9000 is larger than the 1500 of NIC eth1: lower it, or raise the NIC's"),
		},
		"another NIC has the MTU": {
			networks: []string{"jumbo macvlan p 9000"}, devices: []string{"eth1 device up", "eth2 device up mtu=9000"},
			want: "",
		},
		"another NIC can be bridged": {
			networks: []string{"data bridge p"}, devices: []string{"eth1 device up addr=192.0.2.7/24", "eth2 device up"},
			want: lines("bridge eth2"),
		},
		"the kernel lacks macvlan": {
			networks: []string{"data bridge p", "management macvlan p"}, devices: []string{"eth1 device up"}, unavailable: link.KindMacvlan,
			want: lines("bridge eth1", "refused management PluginUnavailable: the node's kernel cannot make links of kind macvlan: load or build its module"),
		},
		"ipvlan and macvlan exclude each other": {
			networks: []string{"shared ipvlan p", "management macvlan p", "more ipvlan p", "data bridge p"}, devices: []string{"eth1 device up"},
			want: lines(
				"refused data PluginConflict: NIC eth1 is used by the older Network shared with plugin ipvlan, and a NIC cannot be an ipvlan parent and a bridge port at once: use plugin ipvlan, or another physical network",
				"refused management PluginConflict: NIC eth1 is used by the older Network shared with plugin ipvlan, and "+noMix+"use plugin ipvlan, or another physical network"),
		},
		"on the NIC's bridge, too": {
			networks: []string{"data bridge p", "management macvlan p", "shared ipvlan p"}, devices: []string{"eth1 device up"},
			want: lines("bridge eth1", "refused shared PluginConflict: NIC eth1 is used by the older Network management with plugin macvlan, and "+noMix+"use plugin macvlan, or another physical network"),
		},
		"a macvlan of the host keeps ipvlans away, but not macvlans": {
			networks: []string{"shared ipvlan p", "management macvlan p"}, devices: []string{"eth1 device up", "mgmt0 macvtap up parent=eth1"},
			want: lines("refused shared PluginConflict: NIC eth1 is used by the host's macvtap interface mgmt0 with plugin macvlan, and " + noMix + "use plugin macvlan, or another physical network"),
		},
		"passthru takes the NIC alone": {
			networks: []string{"whole macvlan p mode=passthru", "management macvlan p"}, devices: []string{"eth1 device up"},
			want: lines("refused management PluginConflict: NIC eth1 is used by the older Network whole, and " + alone),
		},
		"passthru comes too late": {
			networks: []string{"management macvlan p", "whole macvlan p mode=passthru"}, devices: []string{"eth1 device up"},
			want: lines("refused whole PluginConflict: NIC eth1 is used by the older Network management, and " + alone),
		},
		"passthru beside a macvlan of the host": {
			networks: []string{"whole macvlan p mode=passthru", "management macvlan p"}, devices: []string{"eth1 device up", "mgmt0 macvlan up parent=eth1"},
			want: lines("refused whole PluginConflict: NIC eth1 is used by the host's macvlan interface mgmt0, and " + alone),
		},
		"passthru on a bridge port": {
			networks: []string{"whole macvlan p mode=passthru"}, devices: []string{"eth1 device up master=br0:bridge", "br0 bridge up"},
			want: lines("bridge eth1", "refused whole PluginConflict: NIC eth1 is a bridge or a port of one, and a macvlan in passthru mode needs the NIC for itself: choose another mode, or another physical network"),
		},
		"each tag has its own mode": {
			networks: []string{"management macvlan p", "data bridge p vlan=100", "more macvlan p vlan=100", "shared ipvlan p vlan=200"}, devices: []string{"eth1 device up"},
			want: lines("bridge eth1 tag 100"),
		},
		"the NIC's bridge decides nothing for its tags": {
			networks: []string{"tagged macvlan p vlan=100", "data bridge p vlan=100"}, devices: []string{"eth1 device up master=np-eth1:bridge", "np-eth1 bridge up"},
			want: lines("bridge eth1", "refused data PluginConflict: NIC eth1.100 is used by the older Network tagged with plugin macvlan, and "+conflict),
		},
		"an administrator's tagged device has an address": {
			networks: []string{"data bridge p vlan=100"}, devices: []string{"eth1 device up", "storage vlan up parent=eth1 tag=100 addr=192.0.2.7/24"},
			want: lines("refused data HostInterface: NIC storage carries the host's address 192.0.2.7/24, which would be lost in a bridge: use plugin macvlan, or a NIC without addresses"),
		},
		"an administrator's tagged device has a smaller MTU": {
			networks: []string{"data macvlan p vlan=100 1500"}, devices: []string{"eth1 device up", "storage vlan up parent=eth1 tag=100 mtu=1400"},
			want: lines("refused data MTUExceedsInterface: spec.mtu 1500 is larger than the 1400 of NIC storage: lower it, or raise the NIC's"),
		},
		"tags of a port of an administrator's bridge are that bridge's": {
			networks: []string{"data bridge p vlan=100"}, devices: []string{"eth1 device up master=br0:bridge", "br0 bridge up", "storage vlan up parent=br0 tag=100 default"},
			want: lines("bridge eth1", "refused data HostInterface: NIC storage carries the host's default route, which would be lost in a bridge: use plugin macvlan, or another NIC"),
		},
		"a NIC that has come back without its tagged device": {
			networks: []string{"data bridge p vlan=100"}, devices: []string{"eth1 device up", "np-eth1.100 bridge up"},
			want: lines("bridge eth1 tag 100", "lost eth1 tag 100"),
		},
		"the kernel lacks VLAN": {
			networks: []string{"management macvlan p", "tagged macvlan p vlan=100"}, devices: []string{"eth1 device up"}, unavailable: link.KindVLAN,
			want: lines("refused tagged PluginUnavailable: the node's kernel cannot make links of kind vlan: load or build its module"),
		},
		"the kernel lacks ipvlan": {
			networks: []string{"shared ipvlan p"}, devices: []string{"eth1 device up"}, unavailable: link.KindIPVLAN,
			want: lines("refused shared PluginUnavailable: the node's kernel cannot make links of kind ipvlan: load or build its module"),
		},
		"no NIC is there: nothing to refuse": {
			networks: []string{"management macvlan p", "data bridge p"},
			want:     "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := Input{
				Map:         mustMap(t, "{alias: p, ref_nic: eth1}, {alias: p, ref_nic: eth2}"),
				Networks:    networks(t, test.networks...),
				Devices:     devices(t, test.devices...),
				Unavailable: map[string]bool{test.unavailable: true},
			}
			got := Resolve(&in).text()
			var kept []string
			for line := range strings.Lines(got) {
				if strings.HasPrefix(line, "bridge ") || strings.HasPrefix(line, "lost ") || strings.HasPrefix(line, "refused ") {
					kept = append(kept, strings.TrimSuffix(line, "\n"))
				}
			}
			if diff := cmp.Diff(test.want, lines(kept...)); diff != "" {
				t.Errorf("modes and refusals (-want +got):\n%s", diff)
			}
		})
	}
}

func TestResolveDoesNotDependOnOrder(t *testing.T) {
	in := Input{
		PhysicalNetworks: []v1alpha1.PhysicalNetwork{
			{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: v1alpha1.PhysicalNetworkSpec{NodeInterfaces: []v1alpha1.NodeInterface{{Interface: v1alpha1.InterfaceSelector{Driver: "ice"}}}}},
			{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: v1alpha1.PhysicalNetworkSpec{NodeInterfaces: []v1alpha1.NodeInterface{{Interface: v1alpha1.InterfaceSelector{Name: "eth1"}}}}},
			{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: v1alpha1.PhysicalNetworkSpec{NodeInterfaces: []v1alpha1.NodeInterface{{Interface: v1alpha1.InterfaceSelector{Name: "eth9"}}}}},
		},
		Networks: networks(t, "n1 macvlan a", "n2 bridge a", "n3 bridge c", "n4 macvlan c 9000", "n5 bridge b"),
		Devices:  devices(t, "eth1 device up driver=ice", "eth2 device down driver=ice", "eth9 device up", "br0 bridge up"),
	}
	want := Resolve(&in).text()
	if !strings.Contains(want, "refused n2 ") || !strings.Contains(want, "refused n4 ") {
		t.Fatalf("the example shows too little:\n%s", want)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		shuffle(random, in.PhysicalNetworks)
		shuffle(random, in.Networks)
		shuffle(random, in.Devices)
		if diff := cmp.Diff(want, Resolve(&in).text()); diff != "" {
			t.Fatalf("another order, another result (-want +got):\n%s", diff)
		}
	}
}

func shuffle[T any](random *rand.Rand, list []T) {
	random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

func TestNilSnapshotBacksNothing(t *testing.T) {
	var s *Snapshot
	bridged, refusal := s.Bridged("eth1", &v1alpha1.Network{})
	if _, _, refused := s.Refusal("data"); refused || bridged || refusal == "" || len(s.Parents("phy-net0"))+len(s.Refused())+len(s.PhysicalNetworks()) > 0 {
		t.Error("a nil Snapshot claims to know something")
	}
}
