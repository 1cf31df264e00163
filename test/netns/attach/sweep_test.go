// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/netplane/netplane/cni/link"
)

// TestSweepLeavesWhatLives: of the host's ends of veths and the shims only those go
// that are netplane's, that nobody names, and whose pod's namespace is not there.
func TestSweepLeavesWhatLives(t *testing.T) {
	node := wired(t, "node")[0]
	links := openLinks(t, node)
	living, pathless := newSpace(t, "living"), newSpace(t, "pathless")
	veth := func(name string, peer netlink.Veth) {
		t.Helper()
		peer.LinkAttrs = netlink.NewLinkAttrs()
		peer.Name = name
		must(t, node.LinkAdd(&peer))
	}
	end := func(container string) string { return link.HostEndName(container, "net1") }
	veth(end("kept"), netlink.Veth{PeerName: "peer0"})
	veth(end("lives"), netlink.Veth{PeerName: "net1", PeerNamespace: netlink.NsFd(living.ns)})
	veth(end("pathless"), netlink.Veth{PeerName: "net1", PeerNamespace: netlink.NsFd(pathless.ns)})
	veth(end("half"), netlink.Veth{PeerName: "peer1"})
	veth("npvnotours", netlink.Veth{PeerName: "peer2"})
	parent := node.link(t, "eth1").Attrs().Index
	for _, name := range []string{link.ShimName("used", "eth1"), link.ShimName("unused", "eth1")} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = name, parent
		must(t, node.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}))
	}
	removed, err := links.Sweep(t.Context(), []string{end("kept"), link.ShimName("used", "eth1")}, []string{filepath.Dir(living.path), "/no/such/folder"})
	must(t, err)
	want := []string{end("pathless"), end("half"), link.ShimName("unused", "eth1")}
	slices.Sort(want)
	slices.Sort(removed)
	if diff := cmp.Diff(want, removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	left := []string{"eth1", "npvnotours", "peer0", "peer2", end("kept"), end("lives"), link.ShimName("used", "eth1")}
	got := node.links(t)
	slices.Sort(left)
	slices.Sort(got)
	if diff := cmp.Diff(left, got); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	if got := living.links(t); len(got) != 1 {
		t.Errorf("in the pod that lives: %v", got)
	}
}
