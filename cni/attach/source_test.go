// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

func TestSourceRoutesWhereAPodHasSeveralRouters(t *testing.T) {
	const (
		v4 = `{"ips":[{"address":"10.244.0.9/24","gateway":"10.244.0.1"}]}`
		v6 = `{"ips":[{"address":"fd00:244::9/64"}],"routes":[{"dst":"::/0"}]}`
		no = `{"ips":[{"address":"10.244.0.9/24"}],"routes":[{"dst":"10.0.0.0/8"}]}`
	)
	for name, test := range map[string]struct {
		asks, cluster string
		want          map[string]string // by interface
	}{
		"one with a gateway beside the cluster's eth0": {
			asks: "routed@net1", cluster: v4,
			want: map[string]string{"net1": "10.50.0.0/16 0.0.0.0/0 via 10.50.0.254 beside eth0"},
		},
		"the cluster's eth0 is of the other family": {
			asks: "routed@net1", cluster: v6,
			want: map[string]string{"net1": "fd00:10:50::/64 fe80::/64 ::/0 via fd00:10:50::fe beside eth0"},
		},
		"the cluster's eth0 has no router":  {asks: "routed@net1", cluster: no, want: map[string]string{"net1": ""}},
		"one without a gateway beside eth0": {asks: "data@net1", cluster: v4, want: map[string]string{"net1": ""}},
		"two with gateways beside an eth0 without": {
			asks: "routed@net1,second@net2", cluster: no,
			want: map[string]string{
				"net1": "10.50.0.0/16 0.0.0.0/0 via 10.50.0.254 beside eth0",
				"net2": "10.60.0.0/16 10.0.0.0/8 via 10.60.0.253 0.0.0.0/0 via 10.60.0.254 beside eth0",
			},
		},
		"beside our own eth0, whose router is the node": {
			asks: "management@eth0,routed@net1",
			want: map[string]string{
				"eth0": "10.10.0.0/16 0.0.0.0/0 via 10.10.0.1 fd00:10:10::/64 fe80::/64 ::/0 via fd00:10:10::a0a:1",
				"net1": "10.50.0.0/16 0.0.0.0/0 via 10.50.0.254 fd00:10:50::/64 fe80::/64 ::/0 via fd00:10:50::fe",
			},
		},
		"our own eth0 alone": {asks: "management@eth0,data@net1", want: map[string]string{"eth0": "", "net1": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.networks["routed"] = ready("routed", v1alpha1.PluginBridge, "10.50.0.0/16", "fd00:10:50::/64")
			w.networks["routed"].Spec.Gateway, w.networks["routed"].Spec.Gateway6 = "10.50.0.254", "fd00:10:50::fe"
			w.networks["second"] = ready("second", v1alpha1.PluginBridge, "10.60.0.0/16", "")
			w.networks["second"].Spec.Gateway = "10.60.0.254"
			w.networks["second"].Spec.Routes = []v1alpha1.Route{{To: "10.0.0.0/8", Via: "10.60.0.253"}}
			sandbox := sandboxOf("c1")
			all, err := w.prepare(t.Context(), &sandbox, test.asks, nil)
			if err != nil {
				t.Fatal(err)
			}
			var cluster *wire.DefaultNetwork
			if test.cluster != "" {
				cluster = &wire.DefaultNetwork{Name: "cluster-net", Result: []byte(`{"cniVersion":"1.1.0",` + test.cluster[1:])}
			}
			if _, _, err := w.commit(t.Context(), &sandbox, all, cluster); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for line := range strings.Lines(w.links.String()) {
				if fields := strings.Fields(line); fields[0] == "/ns/c1:" {
					_, source, _ := strings.Cut(strings.TrimSpace(line), " source ")
					got[fields[1]] = source
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDefaultRouteKeepsTheClustersOwnWays(t *testing.T) {
	w := newWorld(t)
	w.networks["data"].Spec.Gateway = "10.20.0.254"
	w.config.PodCIDRs = prefixesOf("10.244.0.0/16", "fd00:244::/56")
	if err := w.add(t.Context(), "c1", "- {name: data, defaultRoute: true}"); err != nil {
		t.Fatal(err)
	}
	if text := w.links.String(); !strings.Contains(text, " take-default keep 10.96.0.0/16 keep 10.244.0.0/16 keep fd00:244::/56") {
		t.Error(text)
	}
}

func prefixesOf(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func TestAnInterfaceThatIsPluggedLaterRoutesBySource(t *testing.T) {
	for name, test := range map[string]struct {
		gateways []string // of eth0
		ips      []string // of an interface on a Network with a gateway
		want     string
	}{
		"eth0 has a router":            {[]string{"10.244.0.1"}, nil, "route to 10.20.0.0/16; route to 0.0.0.0/0 via 10.20.0.254; beside eth0"},
		"of the other family":          {[]string{"fd00::1"}, nil, ""},
		"eth0 has no router":           {nil, nil, ""},
		"eth0 has one in each":         {[]string{"fd00::1", "10.244.0.1"}, nil, "route to 10.20.0.0/16; route to 0.0.0.0/0 via 10.20.0.254; beside eth0"},
		"another has a router":         {nil, []string{"10.10.0.9"}, "route to 10.20.0.0/16; route to 0.0.0.0/0 via 10.20.0.254; beside eth0"},
		"another, of the other family": {nil, []string{"fd00:10:10::9"}, ""},
		"an address that is none":      {[]string{"?"}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.networks["data"].Spec.Gateway = "10.20.0.254"
			sandbox := sandboxOf("c1")
			all, err := w.prepare(t.Context(), &sandbox, "data@net1", nil)
			if err != nil {
				t.Fatal(err)
			}
			iface := all[0].design(&circumstances{containerID: "c1", parent: link.Parent{Name: "eth1", MTU: 1500}})
			there := &Sandbox{Attachments: []podnetworks.Attachment{
				{Interface: "eth0", Gateway: test.gateways}, {Interface: "net9", Gateway: []string{"192.0.2.1"}},
				{Interface: "net2", Name: "management", IPs: test.ips},
			}}
			w.networks["management"].Spec.Gateway = "10.10.255.254"
			w.routePlugged(there, &all[0], &iface)
			var got []string
			if iface.Source != nil {
				for _, r := range iface.Source.Routes {
					got = append(got, r.String())
				}
				got = append(got, "beside "+iface.Source.Beside)
			}
			if diff := cmp.Diff(test.want, strings.Join(got, "; ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestInterfacesAreAskedToHaveTheNetworksSysctls(t *testing.T) {
	w := newWorld(t)
	w.networks["data"].Spec.Sysctls = []v1alpha1.Sysctl{{Name: "net.ipv4.conf.IFNAME.rp_filter", Value: "2"}}
	if err := w.add(t.Context(), "c1", "data@net1,management@net2"); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(w.links.String()) {
		if has := strings.Contains(line, "net.ipv4.conf.IFNAME.rp_filter=2"); has != strings.HasPrefix(line, "/ns/c1: net1 ") {
			t.Error(line)
		}
	}
}

func TestPodsHaveSettingsOfTheirOwnAsTheNetworkAllows(t *testing.T) {
	const own = `[{"name": "data", "ifname": "net1", "mtu": 1300, "sysctls": {"net.ipv4.conf.IFNAME.rp_filter": "0"}}, {"name": "data", "ifname": "net2"}]`
	w := newWorld(t)
	spec := &w.networks["data"].Spec
	spec.Sysctls = []v1alpha1.Sysctl{{Name: "net.ipv4.conf.IFNAME.rp_filter", Value: "2"}, {Name: "net.ipv4.conf.IFNAME.log_martians", Value: "1"}}
	if err := w.add(t.Context(), "c1", own); err == nil || !strings.Contains(err.Error(), "not in the network's allowedSysctls") {
		t.Fatalf("without the network's leave: %v", err)
	}
	spec.AllowedSysctls = []v1alpha1.SysctlName{"net.ipv4.conf.IFNAME.rp_filter"}
	if err := w.add(t.Context(), "c1", own); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(w.links.String()), "\n")
	for _, want := range []struct {
		prefix string
		has    []string
		hasNot string
	}{
		{"/ns/c1: net1 ", []string{" mtu 1300 ", "rp_filter=0", "log_martians=1"}, "rp_filter=2"},
		{"/ns/c1: net2 ", []string{"rp_filter=2", "log_martians=1"}, " mtu 1300 "},
	} {
		at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, want.prefix) })
		if at < 0 {
			t.Fatalf("no %q in %q", want.prefix, lines)
		}
		for _, text := range want.has {
			if !strings.Contains(lines[at], text) {
				t.Errorf("want %q in %q", text, lines[at])
			}
		}
		if strings.Contains(lines[at], want.hasNot) {
			t.Errorf("%q in %q", want.hasNot, lines[at])
		}
	}
}
