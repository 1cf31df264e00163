// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"testing"

	"github.com/netplane/netplane/cni/link"
)

// TestTagsKeepNetworksApartAcrossNodes: pods of two nodes on one tag of their NICs
// reach each other with packets of the full size; nobody hears those on another
// tag or on none, though all have addresses of one subnet.
func TestTagsKeepNetworksApartAcrossNodes(t *testing.T) {
	for name, kind := range map[string]string{"macvlan": link.KindMacvlan, "bridge": link.KindVeth, "ipvlan": link.KindIPVLAN} {
		t.Run(name, func(t *testing.T) {
			nodes := wired(t, "a", "b")
			needs(t, nodes[0], link.KindVLAN)
			needs(t, nodes[0], kind)
			one, two := tagged(t, nodes[0], kind, 100, "4"), tagged(t, nodes[1], kind, 100, "5")
			other, bare := tagged(t, nodes[1], kind, 200, "6"), tagged(t, nodes[1], kind, 0, "7")
			beside := tagged(t, nodes[0], kind, 0, "8")
			for address, from := range map[string]string{"10.10.0.5": "10.10.0.4", "fd00:10:10::a0a:5": "fd00:10:10::a0a:4"} {
				if seen := reach(t, one, two, address); seen != from {
					t.Errorf("%s is reached from %s, want %s", address, seen, from)
				}
				if !passes(t, one, two, address, 1500) {
					t.Errorf("a packet of 1500 bytes to %s is lost", address)
				}
			}
			if seen := reach(t, beside, bare, "10.10.0.7"); seen != "10.10.0.8" {
				t.Errorf("without a tag 10.10.0.7 is reached from %s", seen)
			}
			for address, pod := range map[string]*space{"10.10.0.6": other, "fd00:10:10::a0a:7": bare} {
				if passes(t, one, pod, address, 100) {
					t.Errorf("%s of another tag is reached", address)
				}
			}
		})
	}
}

// tagged makes a pod on a node's NIC with a tag; 0 is none.
func tagged(t *testing.T, node *space, kind string, tag int, last string) *space {
	t.Helper()
	links, pod := openLinks(t, node), newSpace(t, "pod"+last)
	parent, err := links.EnsureParent(t.Context(), link.ParentSpec{NIC: "eth1", Tag: tag, Bridge: kind == link.KindVeth})
	must(t, err)
	spec := specOf(kind, "net1", last)
	spec.Parent, spec.MTU = parent.Name, parent.MTU
	if kind == link.KindIPVLAN {
		spec.MAC = parent.MAC
	}
	must(t, links.Add(t.Context(), pod.path, spec))
	return pod
}

// TestIPVLANsReachEachOther: on one node, and across two where the mode lets the
// NIC's neighbours find them.
func TestIPVLANsReachEachOther(t *testing.T) {
	nodes := wired(t, "a", "b")
	needs(t, nodes[0], link.KindIPVLAN)
	one, two, far := tagged(t, nodes[0], link.KindIPVLAN, 0, "4"), tagged(t, nodes[0], link.KindIPVLAN, 0, "5"), tagged(t, nodes[1], link.KindIPVLAN, 0, "6")
	for _, to := range []struct {
		pod      *space
		addr, v6 string
	}{{two, "10.10.0.5", "fd00:10:10::a0a:5"}, {far, "10.10.0.6", "fd00:10:10::a0a:6"}} {
		for address, from := range map[string]string{to.addr: "10.10.0.4", to.v6: "fd00:10:10::a0a:4"} {
			if seen := reach(t, one, to.pod, address); seen != from {
				t.Errorf("%s is reached from %s, want %s", address, seen, from)
			}
		}
	}
}
