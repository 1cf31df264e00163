// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
)

// walker is a sandbox whose eth0 is on the Network management, with an address
// whose block begins with the node's.
func walker(t *testing.T, w *world, id, node, pod string) *Sandbox {
	t.Helper()
	one := func(addr string) netip.Prefix {
		a := netip.MustParseAddr(addr)
		return netip.PrefixFrom(a, a.BitLen())
	}
	own := netip.MustParseAddr(node)
	sandbox := &Sandbox{Sandbox: sandboxOf(id), State: StateAttached, Path: &NodePath{
		Network: "management", Subnets: []netip.Prefix{netip.MustParsePrefix("10.10.0.0/16")},
		Local: []netip.Prefix{netip.PrefixFrom(own, 26)},
		Path: link.Path{
			Device: "nps", Parent: "eth1", MTU: 1500, Addresses: []netip.Prefix{one(node)},
			Routes: []link.HostRoute{{To: netip.MustParseAddr(pod), Source: own}},
		},
	}}
	if err := w.remember(sandbox); err != nil {
		t.Fatal(err)
	}
	if err := w.addPath(t.Context(), sandbox); err != nil {
		t.Fatal(err)
	}
	return sandbox
}

func wantHost(t *testing.T, w *world, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, sorted(w.links.String())); diff != "" {
		t.Error(diff)
	}
}

func TestRouteToTheSubnetOutlivesItsBlock(t *testing.T) {
	w := newWorld(t)
	first := walker(t, w, "c1", "10.10.1.0", "10.10.1.1")
	second := walker(t, w, "c2", "10.10.2.0", "10.10.2.1")
	wantHost(t, w,
		"host: nps address 10.10.1.0/32", "host: nps address 10.10.2.0/32", "host: nps macvlan on eth1 mtu 1500",
		"host: nps route 10.10.0.0/16 src 10.10.1.0", "host: nps route 10.10.1.1 src 10.10.1.0", "host: nps route 10.10.2.1 src 10.10.2.0")
	if err := w.removePath(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	after := []string{
		"host: nps address 10.10.2.0/32", "host: nps macvlan on eth1 mtu 1500",
		"host: nps route 10.10.0.0/16 src 10.10.2.0", "host: nps route 10.10.2.1 src 10.10.2.0",
	}
	wantHost(t, w, after...)
	// The first is not forgotten yet, but counts no more, for whatever is next.
	if err := w.repath(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantHost(t, w, after...)
	if err := w.removePath(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	wantHost(t, w, "")
	for _, sandbox := range []*Sandbox{first, second} {
		if err := w.forget(sandbox.ContainerID); err != nil {
			t.Fatal(err)
		}
	}
	walker(t, w, "c1", "10.10.1.0", "10.10.1.1")
	if !strings.Contains(w.links.String(), "route 10.10.0.0/16 src 10.10.1.0") {
		t.Errorf("a pod that comes later has no way to the subnet:\n%s", w.links)
	}
}

func TestPathIsMadeAgainWhole(t *testing.T) {
	w := newWorld(t)
	walker(t, w, "c1", "10.10.1.0", "10.10.1.1")
	walker(t, w, "c2", "10.10.1.0", "10.10.1.2")
	before := sorted(w.links.String())
	if err := w.links.RemovePath(t.Context(), w.snapshot()[0].Path.Path, true); err != nil {
		t.Fatal(err)
	}
	if err := w.repath(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantHost(t, w, before...)
}

func TestMasqueradesNeedOneRuleForEachNetworkAndDevice(t *testing.T) {
	w := newWorld(t)
	walker(t, w, "c1", "10.10.2.0", "10.10.2.1")
	walker(t, w, "c2", "10.10.1.0", "10.10.1.1")
	rules, text := masquerades(w.walkers())
	want := "rules: management nps [10.10.0.0/16] [10.10.1.0] [10.10.1.0/26 10.10.2.0/26]"
	if len(rules) != 1 || text != want {
		t.Errorf("got %s, want %s", text, want)
	}
}

func TestBlockOfAPod(t *testing.T) {
	n := ready("management", "macvlan", "10.10.0.0/16", "fd00:10:10::/64")
	plan, err := addressing.NewPlan(n.Name, &n.Spec)
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"10.10.1.5": "10.10.1.0/26 fd00:10:10::a0a:100/122",
		"10.10.9.9": "10.10.9.9/32 fd00:10:10::a0a:909/128", // fixed
	} {
		w := wanted{network: n, plan: plan, lease: ipam.Lease{Address: netip.MustParseAddr(address), Block: netip.MustParsePrefix("10.10.1.0/26")}}
		var got []string
		for _, prefix := range plan.Interface(w.lease.Address) {
			got = append(got, w.blockOf(prefix.Addr()).String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %v, want %s", address, got, want)
		}
	}
}
