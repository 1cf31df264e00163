// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/cni/link"
)

// Addresses of a client that is far away by whichever way.
const (
	client4 = "198.51.100.7"
	client6 = "2001:db8::7"
)

// give adds addresses to a link, usable at once.
func (s *space) give(t *testing.T, name string, addresses ...string) {
	t.Helper()
	for _, text := range addresses {
		must(t, s.AddrAdd(s.link(t, name), &netlink.Addr{IPNet: ipNet(text), Flags: unix.IFA_F_NODAD}))
	}
}

func (s *space) route(t *testing.T, to, via string) {
	t.Helper()
	must(t, s.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: net.ParseIP(via)}))
}

// clustered gives a pod an eth0 of a cluster network, whose router, the
// namespace returned, is also where the client is.
func clustered(t *testing.T, pod *space) *space {
	t.Helper()
	router := newSpace(t, "router")
	must(t, router.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "pod", TxQLen: -1}, PeerTxQLen: -1, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.ns),
	}))
	router.give(t, "pod", "10.244.0.1/24", "fd00:244::1/64")
	router.give(t, "lo", client4+"/32", client6+"/128")
	router.up(t, "pod")
	pod.give(t, "eth0", "10.244.0.9/24", "fd00:244::9/64")
	pod.up(t, "eth0")
	pod.route(t, "0.0.0.0/0", "10.244.0.1")
	pod.route(t, "::/0", "fd00:244::1")
	return router
}

// answers says whether a client's connection to a pod's address comes about.
func answers(t *testing.T, from, pod *space, client, address string) error {
	t.Helper()
	var listener net.Listener
	must(t, pod.in(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(address, "0"))
		return err
	}))
	defer func() { _ = listener.Close() }()
	return from.in(func() error {
		dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
		conn, err := dialer.Dial("tcp", listener.Addr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
}

// rulesOf lists a pod's rules beyond the kernel's own.
func rulesOf(t *testing.T, s *space) []string {
	t.Helper()
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules := whole(t, func() ([]netlink.Rule, error) { return s.RuleList(family) })
		for _, r := range rules {
			if r.Src != nil {
				out = append(out, fmt.Sprintf("from %s table %d", r.Src, r.Table))
			}
		}
	}
	slices.Sort(out)
	return out
}

// routed is a pod's interface with a gateway, beside the cluster's eth0.
func routed(name string) link.Interface {
	spec := specOf(link.KindMacvlan, name, "5")
	spec.Source = &link.SourceRoutes{Beside: "eth0"}
	for _, r := range []string{"10.10.0.0/16", "0.0.0.0/0 10.10.255.254", "fd00:10:10::/64", "fe80::/64", "::/0 fd00:10:10::fe"} {
		to, via, hop := strings.Cut(r, " ")
		route := link.Route{To: netip.MustParsePrefix(to)}
		if hop {
			route.Via = netip.MustParseAddr(via)
		}
		spec.Source.Routes = append(spec.Source.Routes, route)
	}
	return spec
}

func TestAnswersLeaveByTheInterfaceThatWasAsked(t *testing.T) {
	for _, takesDefault := range []bool{false, true} {
		t.Run(fmt.Sprintf("the network takes the default route: %t", takesDefault), func(t *testing.T) {
			nodes, pod := wired(t, "node", "gateway"), newSpace(t, "pod")
			links, gateway := openLinks(t, nodes[0]), nodes[1]
			gateway.give(t, "eth1", "10.10.255.254/16", "fd00:10:10::fe/64")
			gateway.give(t, "lo", client4+"/32", client6+"/128")
			cluster := clustered(t, pod)
			spec := routed("net1")
			if takesDefault {
				spec.TakeDefault = true
				spec.Routes = []link.Route{
					{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.10.255.254")},
					{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00:10:10::fe")},
				}
			}
			must(t, links.Add(t.Context(), pod.path, spec))
			must(t, links.Check(t.Context(), pod.path, spec))
			for _, family := range [][3]string{{client4, "10.10.0.5", "10.244.0.9"}, {client6, "fd00:10:10::a0a:5", "fd00:244::9"}} {
				if err := answers(t, gateway, pod, family[0], family[1]); err != nil {
					t.Errorf("asked by the network: %v", err)
				}
				if err := answers(t, cluster, pod, family[0], family[2]); err != nil {
					t.Errorf("asked by the cluster's eth0: %v", err)
				}
			}
			eth0, net1 := 1000+pod.link(t, "eth0").Attrs().Index, 1000+pod.link(t, "net1").Attrs().Index
			want := []string{
				fmt.Sprintf("from 10.10.0.5/32 table %d", net1), fmt.Sprintf("from 10.244.0.9/32 table %d", eth0),
				fmt.Sprintf("from fd00:10:10::a0a:5/128 table %d", net1), fmt.Sprintf("from fd00:244::9/128 table %d", eth0),
			}
			if diff := cmp.Diff(want, rulesOf(t, pod)); diff != "" {
				t.Error(diff)
			}
			must(t, links.Delete(t.Context(), pod.path, spec))
			if diff := cmp.Diff([]string{want[1], want[3]}, rulesOf(t, pod)); diff != "" {
				t.Errorf("rules left: %s", diff)
			}
		})
	}
}

// Two networks whose gateways both know the client, and a third without one.
func TestInterfacesOfSeveralNetworksAnswerForThemselves(t *testing.T) {
	nodes, pod := wired(t, "node", "gateway"), newSpace(t, "pod")
	links, gateway := openLinks(t, nodes[0]), nodes[1]
	other := plugged(t, nodes[0], "eth2")
	for _, g := range []*space{gateway, other} {
		g.give(t, "lo", client4+"/32", client6+"/128")
	}
	gateway.give(t, "eth1", "10.10.255.254/16", "fd00:10:10::fe/64")
	other.give(t, "eth1", "10.20.255.254/16")
	clustered(t, pod)
	second := link.Interface{
		Name: "net2", Kind: link.KindMacvlan, Parent: "eth2", MAC: "0a:01:0a:14:00:05", MTU: 1400, Addresses: prefixes("10.20.0.5/16"),
		Source: &link.SourceRoutes{Beside: "eth0", Routes: []link.Route{
			{To: netip.MustParsePrefix("10.20.0.0/16")}, {To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.20.255.254")},
		}},
	}
	for _, spec := range []link.Interface{routed("net1"), second} {
		must(t, links.Add(t.Context(), pod.path, spec))
		must(t, links.Check(t.Context(), pod.path, spec))
	}
	for _, q := range []struct {
		from            *space
		client, address string
	}{{gateway, client4, "10.10.0.5"}, {gateway, client6, "fd00:10:10::a0a:5"}, {other, client4, "10.20.0.5"}} {
		if err := answers(t, q.from, pod, q.client, q.address); err != nil {
			t.Errorf("%s: %v", q.address, err)
		}
	}
}

func TestTheClustersOwnWaysStayWithEth0(t *testing.T) {
	for name, hop := range map[string]bool{"by a next hop": true, "on the link": false} {
		t.Run(name, func(t *testing.T) {
			nodes, pod := wired(t, "node", "gateway"), newSpace(t, "pod")
			links := openLinks(t, nodes[0])
			clustered(t, pod)
			if !hop {
				index := pod.link(t, "eth0").Attrs().Index
				must(t, pod.RouteReplace(&netlink.Route{Dst: ipNet("0.0.0.0/0"), LinkIndex: index, Scope: netlink.SCOPE_LINK}))
				must(t, pod.RouteReplace(&netlink.Route{Dst: ipNet("::/0"), LinkIndex: index}))
			}
			spec := routed("net1")
			spec.TakeDefault, spec.Keep = true, prefixes("10.96.0.0/16 10.244.0.0/16 fd00:96::/112 fd00:244::/56")
			spec.Routes = []link.Route{
				{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.10.255.254")},
				{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00:10:10::fe")},
			}
			must(t, links.Add(t.Context(), pod.path, spec))
			for _, to := range []string{"10.96.0.10", "10.244.7.7", "fd00:96::a", "fd00:244:0:7::7"} {
				if dev := leavesBy(t, pod, to); dev != "eth0" {
					t.Errorf("%s is reached by %s", to, dev)
				}
			}
			for _, to := range []string{"192.0.2.1", "2001:db8:1::1"} {
				if dev := leavesBy(t, pod, to); dev != "net1" {
					t.Errorf("%s is reached by %s", to, dev)
				}
			}
		})
	}
}

// leavesBy asks the kernel by which link a pod reaches an address.
func leavesBy(t *testing.T, pod *space, to string) string {
	t.Helper()
	routes, err := pod.RouteGet(net.ParseIP(to))
	must(t, err)
	dev, err := pod.LinkByIndex(routes[0].LinkIndex)
	must(t, err)
	return dev.Attrs().Name
}

func TestCheckSeesAllThatAddGave(t *testing.T) {
	for want, spoil := range map[string]func(t *testing.T, pod *space){
		"lacks the route to 10.10.0.0/16 in table": func(t *testing.T, pod *space) {
			index := pod.link(t, "net1").Attrs().Index
			must(t, pod.RouteDel(&netlink.Route{Dst: ipNet("10.10.0.0/16"), LinkIndex: index, Table: 1000 + index, Scope: netlink.SCOPE_LINK}))
		},
		"lacks the rule from 10.10.0.5 to table": func(t *testing.T, pod *space) {
			rule := netlink.NewRule()
			rule.Src, rule.Priority, rule.Table = ipNet("10.10.0.5/32"), 1000, 1000+pod.link(t, "net1").Attrs().Index
			must(t, pod.RuleDel(rule))
		},
		"lacks the route to 192.0.2.0/24 via 10.10.0.77": func(t *testing.T, pod *space) {
			must(t, pod.RouteDel(&netlink.Route{Dst: ipNet("192.0.2.0/24")}))
		},
		"lacks the route to 2001:db8:2::/48": func(t *testing.T, pod *space) {
			must(t, pod.RouteReplace(&netlink.Route{Dst: ipNet("2001:db8:2::/48"), Gw: net.ParseIP("fd00:10:10::66")}))
		},
		"lacks address fd00:10:10::a0a:5/64": func(t *testing.T, pod *space) {
			must(t, pod.AddrDel(pod.link(t, "net1"), &netlink.Addr{IPNet: ipNet("fd00:10:10::a0a:5/64")}))
		},
		"has MTU 1300, not 1400": func(t *testing.T, pod *space) { must(t, pod.LinkSetMTU(pod.link(t, "net1"), 1300)) },
		"has MAC 02:00:00:00:00:09, not 0a:01:0a:0a:00:05": func(t *testing.T, pod *space) {
			must(t, pod.LinkSetHardwareAddr(pod.link(t, "net1"), net.HardwareAddr{2, 0, 0, 0, 0, 9}))
		},
		"is down": func(t *testing.T, pod *space) { must(t, pod.LinkSetDown(pod.link(t, "net1"))) },
	} {
		t.Run(want, func(t *testing.T) {
			node, pod := wired(t, "node")[0], newSpace(t, "pod")
			clustered(t, pod)
			links, spec := openLinks(t, node), routed("net1")
			spec.Routes = []link.Route{
				{To: netip.MustParsePrefix("192.0.2.0/24"), Via: netip.MustParseAddr("10.10.0.77")},
				{To: netip.MustParsePrefix("2001:db8:2::/48"), Via: netip.MustParseAddr("fd00:10:10::77")},
			}
			must(t, links.Add(t.Context(), pod.path, spec))
			must(t, links.Check(t.Context(), pod.path, spec))
			spoil(t, pod)
			err := links.Check(t.Context(), pod.path, spec)
			if err == nil || !strings.HasPrefix(err.Error(), "interface net1 ") || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		})
	}
}
