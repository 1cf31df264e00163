// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/cni/link"
)

// several are interfaces of both kinds, more than one message to the kernel holds.
func several(t *testing.T, links *link.Links, count int) []link.Interface {
	t.Helper()
	bridge, err := links.EnsureBridge(t.Context(), "eth1")
	must(t, err)
	var out []link.Interface
	for i := range count {
		spec := link.Interface{
			Name: fmt.Sprintf("net%d", i), Kind: link.KindMacvlan, Parent: bridge, MAC: fmt.Sprintf("0a:01:0a:0a:01:%02x", i), MTU: 1400,
			Addresses: prefixes(fmt.Sprintf("10.%d.0.5/16 fd00:%d::5/64", 100+i, 100+i)),
		}
		if i%2 == 0 {
			spec.Kind, spec.HostEnd = link.KindVeth, link.HostEndName("several", spec.Name)
		}
		out = append(out, spec)
	}
	return out
}

func TestSeveralInterfacesComeAndGoTogether(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	links := openLinks(t, node)
	specs := several(t, links, 32)
	before := node.links(t)
	must(t, links.Add(t.Context(), pod.path, specs...))
	must(t, links.Announce(t.Context(), pod.path, specs...))
	for i := range specs {
		must(t, links.Check(t.Context(), pod.path, specs[i]))
	}
	for path, want := range map[string]string{
		"ipv4/conf/net7/arp_notify": "1", "ipv6/conf/net7/ndisc_notify": "1", "ipv6/conf/net7/accept_ra": "0", "ipv6/conf/net7/accept_dad": "0",
		// What others make later in the pod is not ours to settle.
		"ipv4/conf/default/arp_notify": "0", "ipv6/conf/default/ndisc_notify": "0", "ipv6/conf/default/accept_ra": "1", "ipv6/conf/default/accept_dad": "1",
	} {
		if got := pod.setting(t, path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	for range 2 {
		must(t, links.Delete(t.Context(), pod.path, specs...))
	}
	if left := pod.links(t); len(left) > 0 {
		t.Errorf("left in the pod: %v", left)
	}
	if diff := cmp.Diff(before, node.links(t)); diff != "" {
		t.Errorf("left in the host: %s", diff)
	}
}

func TestSeveralInterfacesAreAllOrNone(t *testing.T) {
	for name, spoil := range map[string]func(spec *link.Interface){
		"one cannot be born":           func(spec *link.Interface) { spec.Mode, spec.Kind = link.ModePassthru, link.KindMacvlan },
		"one cannot be configured":     func(spec *link.Interface) { spec.Addresses = append(spec.Addresses, spec.Addresses[0]) },
		"one has a name that is taken": func(spec *link.Interface) { spec.Name = "own" },
	} {
		t.Run(name, func(t *testing.T) {
			node, pod := wired(t, "node")[0], newSpace(t, "pod")
			links := openLinks(t, node)
			specs := several(t, links, 4)
			own := specOf(link.KindMacvlan, "own", "9")
			own.Parent = specs[0].Parent
			must(t, links.Add(t.Context(), pod.path, own))
			before := node.links(t)
			spoil(&specs[2])
			if err := links.Add(t.Context(), pod.path, specs...); err == nil {
				t.Error("no error")
			}
			must(t, links.Check(t.Context(), pod.path, own))
			if diff := cmp.Diff([]string{"own"}, pod.links(t)); diff != "" {
				t.Errorf("left in the pod: %s", diff)
			}
			if diff := cmp.Diff(before, node.links(t)); diff != "" {
				t.Errorf("left in the host: %s", diff)
			}
		})
	}
}

// TestDeleteOfSeveralSparesOthers: the pod may have links of its own, in any group.
func TestDeleteOfSeveralSparesOthers(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	links := openLinks(t, node)
	specs := several(t, links, 4)
	must(t, links.Add(t.Context(), pod.path, specs...))
	must(t, links.Delete(t.Context(), pod.path, specs[0]))
	must(t, links.Delete(t.Context(), pod.path, specs[0], specs[1]))
	if diff := cmp.Diff([]string{"net2", "net3"}, slices.Sorted(slices.Values(pod.links(t)))); diff != "" {
		t.Error(diff)
	}
	if pod.link(t, "net3").Attrs().RawFlags&unix.IFF_UP == 0 {
		t.Error("net3 is down")
	}
}
