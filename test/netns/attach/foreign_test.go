// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/cni/link"
)

// foreignLink gives a pod an interface that another plugin has made, with a default
// route beside those that there are.
func foreignLink(t *testing.T, pod *space, name, address, router string) {
	t.Helper()
	must(t, pod.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, PeerName: name + "-far"}))
	pod.up(t, name+"-far")
	pod.up(t, name)
	pod.give(t, name, address)
	must(t, pod.RouteAppend(&netlink.Route{Dst: ipNet("::/0"), Gw: net.ParseIP(router), LinkIndex: pod.link(t, name).Attrs().Index}))
}

// defaults lists the IPv6 default routes that count, those with the least metric,
// as the device of each next hop.
func defaults(t *testing.T, pod *space) []string {
	t.Helper()
	all := whole(t, func() ([]netlink.Route, error) {
		return pod.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	least, out := 1<<30, []string{}
	name := func(index int) string {
		dev, err := pod.LinkByIndex(index)
		must(t, err)
		return dev.Attrs().Name
	}
	for _, r := range all {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue
			}
		}
		if r.Priority > least {
			continue
		}
		if r.Priority < least {
			least, out = r.Priority, nil
		}
		for _, hop := range r.MultiPath {
			out = append(out, name(hop.LinkIndex))
		}
		if len(r.MultiPath) == 0 {
			out = append(out, name(r.LinkIndex))
		}
	}
	slices.Sort(out)
	return out
}

// TestIPv6DefaultsOfPluginsDoNotMix: the kernel takes a second default route of the
// same metric for another hop of the first, and balances.
func TestIPv6DefaultsOfPluginsDoNotMix(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	links := openLinks(t, node)
	clustered(t, pod)
	foreignLink(t, pod, "net1", "fd00:1::2/64", "fd00:1::1")
	foreignLink(t, pod, "net2", "fd00:2::2/64", "fd00:2::1")
	if diff := cmp.Diff([]string{"eth0", "net1", "net2"}, defaults(t, pod)); diff != "" {
		t.Fatalf("the kernel does not mix them: %s", diff)
	}
	for _, name := range []string{"net1", "net2"} {
		adopted, err := links.Adopt(t.Context(), pod.path, name, true)
		must(t, err)
		if born := pod.link(t, name).Attrs(); adopted.MAC != born.HardwareAddr.String() || adopted.MTU != born.MTU {
			t.Errorf("%s is told as %+v", name, adopted)
		}
	}
	if diff := cmp.Diff([]string{"eth0"}, defaults(t, pod)); diff != "" {
		t.Errorf("beside eth0: %s", diff)
	}
	// Each plugin finds its own route when its CHECK looks for it.
	all := whole(t, func() ([]netlink.Route, error) {
		return pod.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	for _, name := range []string{"net1", "net2"} {
		index := pod.link(t, name).Attrs().Index
		if !slices.ContainsFunc(all, func(r netlink.Route) bool { return r.LinkIndex == index && r.Gw != nil }) {
			t.Errorf("the default route of %s is gone", name)
		}
	}
	t.Run("one takes the default route", func(t *testing.T) {
		keep := prefixes("fd00:96::/112")
		must(t, links.TakeDefault(t.Context(), pod.path, "net1", []netip.Addr{netip.MustParseAddr("fd00:1::1")}, keep))
		if diff := cmp.Diff([]string{"net1"}, defaults(t, pod)); diff != "" {
			t.Error(diff)
		}
		if dev := leavesBy(t, pod, "fd00:96::a"); dev != "eth0" {
			t.Errorf("Services are reached by %s", dev)
		}
	})
	t.Run("an interface that is not there", func(t *testing.T) {
		if _, err := links.Adopt(t.Context(), pod.path, "net9", true); !link.IsGone(err) {
			t.Errorf("got %v", err)
		}
	})
}

// TestServicesStayWithAnEth0ThatSharesItsDefault: another plugin's route is a
// second hop of eth0's when ours comes.
func TestServicesStayWithAnEth0ThatSharesItsDefault(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	links := openLinks(t, node)
	clustered(t, pod)
	foreignLink(t, pod, "net1", "fd00:1::2/64", "fd00:1::1")
	spec := routed("net2")
	spec.TakeDefault, spec.Keep = true, prefixes("fd00:96::/112")
	spec.Routes = []link.Route{{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00:10:10::fe")}}
	must(t, links.Add(t.Context(), pod.path, spec))
	if diff := cmp.Diff([]string{"net2"}, defaults(t, pod)); diff != "" {
		t.Error(diff)
	}
	if dev := leavesBy(t, pod, "fd00:96::a"); dev != "eth0" {
		t.Errorf("Services are reached by %s", dev)
	}
	must(t, links.Check(t.Context(), pod.path, spec))
}

// TestRoutesOverALinkWithoutCarrier: the kernel tells that the link is down by a
// flag that it takes from nobody.
func TestRoutesOverALinkWithoutCarrier(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	links := openLinks(t, node)
	router := clustered(t, pod)
	must(t, router.LinkSetDown(router.link(t, "pod")))
	down := func() bool {
		all := whole(t, func() ([]netlink.Route, error) { return pod.RouteList(pod.link(t, "eth0"), netlink.FAMILY_V4) })
		return slices.ContainsFunc(all, func(r netlink.Route) bool { return r.Flags&unix.RTNH_F_LINKDOWN != 0 })
	}
	eventually(t, "the kernel tells that the link is down", down)
	if _, err := links.Adopt(t.Context(), pod.path, "eth0", true); err != nil {
		t.Errorf("putting its default route behind: %v", err)
	}
	spec := routed("net1") // eth0's routes are copied
	must(t, links.Add(t.Context(), pod.path, spec))
	must(t, links.Delete(t.Context(), pod.path, spec))
	spec.TakeDefault, spec.Keep = true, prefixes("10.96.0.0/16")
	spec.Routes = []link.Route{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.10.255.254")}}
	must(t, links.Add(t.Context(), pod.path, spec))
	if routes := pod.routes(t, netlink.FAMILY_V4); !slices.ContainsFunc(routes, func(r string) bool { return strings.HasPrefix(r, "10.96.0.0/16") }) {
		t.Errorf("Services have no way: %v", routes)
	}
}

// TestRoutersLeaveInterfacesWithoutIPv6Alone: an interface without IPv6 addresses
// must not be given any by a router's advertisements.
func TestRoutersLeaveInterfacesWithoutIPv6Alone(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	links := openLinks(t, node)
	for _, kind := range []string{link.KindMacvlan, link.KindVeth} {
		var specs []link.Interface
		for _, name := range []string{kind + "1", kind + "2"} {
			spec := specOf(kind, name, "5")
			spec.Addresses = prefixes("10.10.0.5/16")
			if kind == link.KindVeth {
				bridge, err := links.EnsureBridge(t.Context(), "eth1")
				must(t, err)
				spec.Parent = bridge
			}
			specs = append(specs, spec)
		}
		specs[1].MAC, specs[1].Addresses = "0a:01:0a:0a:00:06", prefixes("10.10.0.6/16")
		must(t, links.Add(t.Context(), pod.path, specs[0]))
		must(t, links.Delete(t.Context(), pod.path, specs[0]))
		must(t, links.Add(t.Context(), pod.path, specs[:1]...))
		if got := pod.setting(t, "ipv6/conf/"+specs[0].Name+"/accept_ra"); got != "0" {
			t.Errorf("%s: accept_ra is %s", kind, got)
		}
		must(t, links.Delete(t.Context(), pod.path, specs[0]))
		must(t, links.Add(t.Context(), pod.path, specs...)) // by the settings called default
		if got := pod.setting(t, "ipv6/conf/"+specs[1].Name+"/accept_ra"); got != "0" {
			t.Errorf("two %s: accept_ra is %s", kind, got)
		}
		must(t, links.Delete(t.Context(), pod.path, specs...))
	}
}
