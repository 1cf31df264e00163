// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/overlay"
)

// kind is one way in which a pod's interface is made: by a Network of ours and
// by a reference plugin. Who adds a kind adds a row to kinds.
type kind struct {
	name   string
	plugin string
	change func(*v1alpha1.NetworkSpec)
	// asks is the pod's annotation; empty is data@net1.
	asks string
	// needs are kinds of links without which the row is skipped.
	needs []string
	// parent is what our plugin makes of the NIC, and here an administrator on
	// the reference's node; nil: the NIC itself.
	parent *link.ParentSpec
	// prepare comes before our agent starts.
	prepare func(t *testing.T, p *pair, reference *space)
	// started comes when it serves.
	started func(t *testing.T, p *pair)
	// reference is the list of reference plugins, the first without addresses and MAC.
	reference func(t *testing.T) []map[string]any
	// routes are those that the reference's addresses bring beyond the Network's.
	routes [][2]string
	// settings are compared, too: paths below /proc/sys/net in the pod.
	settings []string
	// podOnly: the reference has nothing to compare the node with.
	podOnly bool
	// deletedOnce: the reference fails when what it is to delete is gone, which
	// the specification forbids.
	deletedOnce bool
	// strays: the reference's ADD that fails leaves a link of a name of its own in the pod.
	strays bool
	// mend does on the reference's node what the reference is known to forget.
	mend func(t *testing.T, reference *space)
}

// annotation is what the pod asks for.
func (k *kind) annotation() string {
	if k.asks != "" {
		return k.asks
	}
	return "data@net1"
}

// one is a list of one plugin, told as pairs of keys and values.
func one(keysAndValues ...any) func(*testing.T) []map[string]any {
	return func(*testing.T) []map[string]any { return []map[string]any{plugin(keysAndValues...)} }
}

func plugin(keysAndValues ...any) map[string]any {
	out := map[string]any{}
	for i := 0; i < len(keysAndValues); i += 2 {
		out[keysAndValues[i].(string)] = keysAndValues[i+1]
	}
	return out
}

// options fills in Network.spec.pluginConfig.
func options(format string, values ...any) func(*v1alpha1.NetworkSpec) {
	return func(s *v1alpha1.NetworkSpec) {
		s.PluginConfig = &apiextensionsv1.JSON{Raw: fmt.Appendf(nil, format, values...)}
	}
}

func kinds() []kind {
	return slices.Concat(macvlanKinds(), bridgeKinds(), otherKinds())
}

func bridgeOver() *link.ParentSpec { return &link.ParentSpec{NIC: "eth1", Bridge: true} }

func macvlanKinds() []kind {
	out := []kind{
		{
			name: "macvlan", plugin: v1alpha1.PluginMacvlan, change: func(s *v1alpha1.NetworkSpec) { s.MTU = 1400 },
			reference: one("type", "macvlan", "master", "eth1", "mode", "bridge", "mtu", 1400),
		},
		{
			name: "macvlan on a bridge", plugin: v1alpha1.PluginMacvlan, parent: bridgeOver(),
			reference: one("type", "macvlan", "master", "np-eth1", "mode", "bridge"),
		},
		{
			name: "macvlan with a VLAN tag", plugin: v1alpha1.PluginMacvlan, change: func(s *v1alpha1.NetworkSpec) { s.VLAN = 100 },
			needs: []string{link.KindVLAN}, parent: &link.ParentSpec{NIC: "eth1", Tag: 100},
			reference: one("type", "macvlan", "master", "eth1.100", "mode", "bridge"),
		},
		{
			name: "macvlan with sysctls", plugin: v1alpha1.PluginMacvlan,
			change: func(s *v1alpha1.NetworkSpec) {
				s.Sysctls = []v1alpha1.Sysctl{{Name: "net.ipv4.conf.IFNAME.rp_filter", Value: "2"}, {Name: "net.ipv6.conf.IFNAME.hop_limit", Value: "77"}}
			},
			settings: []string{"ipv4/conf/net1/rp_filter", "ipv6/conf/net1/hop_limit", "ipv4/conf/net1/arp_notify", "ipv6/conf/net1/ndisc_notify"},
			reference: func(t *testing.T) []map[string]any {
				return []map[string]any{
					plugin("type", "macvlan", "master", "eth1"),
					plugin("type", "tuning", "dataDir", t.TempDir(), "sysctl", map[string]string{"net.ipv4.conf.net1.rp_filter": "2", "net.ipv6.conf.net1.hop_limit": "77"}),
				}
			},
		},
		{
			name: "macvlan with the default route", plugin: v1alpha1.PluginMacvlan, asks: "- {name: data, ifname: net1, defaultRoute: true}",
			change:    func(s *v1alpha1.NetworkSpec) { s.Gateway, s.Gateway6 = "10.10.0.1", "fd00:10:10::1" },
			prepare:   func(t *testing.T, p *pair, _ *space) { p.clusterAnswers(t, `{"cniVersion":"1.1.0"}`) },
			reference: one("type", "macvlan", "master", "eth1"),
			routes:    [][2]string{{"0.0.0.0/0", "10.10.0.1"}, {"::/0", "fd00:10:10::1"}},
		},
	}
	for _, mode := range []string{link.ModePrivate, link.ModeVEPA, link.ModePassthru} {
		out = append(out, kind{
			name: "macvlan " + mode, plugin: v1alpha1.PluginMacvlan, change: options(`{"mode":%q}`, mode),
			reference: one("type", "macvlan", "master", "eth1", "mode", mode),
		})
	}
	return out
}

func bridgeKinds() []kind {
	return []kind{
		{
			name: "bridge", plugin: v1alpha1.PluginBridge, parent: bridgeOver(),
			reference: one("type", "bridge", "bridge", "np-eth1"),
		},
		{
			name: "bridge with isolated ports", plugin: v1alpha1.PluginBridge, parent: bridgeOver(), change: options(`{"isolated":true}`),
			reference: one("type", "bridge", "bridge", "np-eth1", "portIsolation", true),
		},
		{
			name: "bridge with a spoof check", plugin: v1alpha1.PluginBridge, parent: bridgeOver(), change: options(`{"spoofCheck":true}`),
			needs:     []string{link.NeedsIngress},
			reference: one("type", "bridge", "bridge", "np-eth1", "macspoofchk", true),
		},
		{
			// The plugin's own mtu would change the bridge's as well.
			name: "bridge with an MTU", plugin: v1alpha1.PluginBridge, parent: bridgeOver(), change: func(s *v1alpha1.NetworkSpec) { s.MTU = 1400 },
			reference: func(t *testing.T) []map[string]any {
				return []map[string]any{plugin("type", "bridge", "bridge", "np-eth1"), plugin("type", "tuning", "dataDir", t.TempDir(), "mtu", 1400)}
			},
		},
		{
			name: "bridge with a VLAN tag", plugin: v1alpha1.PluginBridge, change: func(s *v1alpha1.NetworkSpec) { s.VLAN = 100 },
			needs: []string{link.KindVLAN}, parent: &link.ParentSpec{NIC: "eth1", Tag: 100, Bridge: true},
			reference: one("type", "bridge", "bridge", "np-eth1.100"),
		},
	}
}

func otherKinds() []kind {
	out := []kind{
		{
			name: "host-device", plugin: v1alpha1.PluginHostDevice, deletedOnce: true,
			prepare:   func(_ *testing.T, p *pair, _ *space) { p.exclusive = []string{"eth1"} },
			reference: one("type", "host-device", "device", "eth1"),
			mend:      func(t *testing.T, reference *space) { reference.up(t, "eth1") },
		},
		{
			name: "vxlan", plugin: v1alpha1.PluginVXLAN, podOnly: true, prepare: segments, started: keepSegments,
			reference: func(t *testing.T) []map[string]any {
				return []map[string]any{plugin("type", "bridge", "bridge", "segment"), plugin("type", "tuning", "dataDir", t.TempDir(), "mtu", 1430)}
			},
		},
	}
	for _, mode := range []string{link.ModeL2, link.ModeL3} {
		out = append(out, kind{
			name: "ipvlan " + mode, plugin: v1alpha1.PluginIPVLAN, needs: []string{link.KindIPVLAN}, change: options(`{"mode":%q}`, mode), strays: true,
			reference: one("type", "ipvlan", "master", "eth1", "mode", mode),
		})
	}
	return out
}

// segments has the agent make segments of vxlan Networks, with tunnels from the
// NIC's link-local address.
func segments(t *testing.T, p *pair, reference *space) {
	t.Helper()
	must(t, reference.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "segment", TxQLen: -1}}))
	p.tunnel = link.Tunnel{Device: "eth1", Address: netip.MustParseAddr(linkLocal(t, p.node, "eth1")), MTU: 1500}
	n := p.networks["data"]
	manager := overlay.New("node", overlay.Deps{
		Links: p.links, Blocks: &ether{blocks: map[string]*v1alpha1.IPBlock{}, followers: map[int]func(){}},
		Networks: func() []v1alpha1.Network { return []v1alpha1.Network{*n} },
		Tunnel:   func(string) (link.Tunnel, bool) { return p.tunnel, true },
		Used:     func() []string { return p.server.OverlayBridges() },
	})
	p.overlays = manager
}

// keepSegments runs what segments made, as soon as there is a server to ask.
func keepSegments(t *testing.T, p *pair) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = p.overlays.(*overlay.Manager).Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
}
