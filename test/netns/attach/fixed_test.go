// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
)

// TestFixedAddressOnEth0HasAPathOverTheNode: an address of the static range is
// of no block, but the node's own address, over which it is reached, is.
func TestFixedAddressOnEth0HasAPathOverTheNode(t *testing.T) {
	node := wired(t, "node")[0]
	a := newAgent(t, node, network("management", v1alpha1.PluginMacvlan, func(s *v1alpha1.NetworkSpec) { s.StaticRange = "10.10.254.0/24" }))
	for container, address := range map[string]v1alpha1.IP{"c1": "10.10.254.5", "c2": "10.10.254.6"} {
		a.claims = append(a.claims, &v1alpha1.IPClaim{
			Spec: v1alpha1.IPClaimSpec{Network: "management", Address: address,
				Owner: v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerPod, Namespace: "default", Name: "pod-" + container, Interface: "eth0"}},
			Status: v1alpha1.IPClaimStatus{PodUID: types.UID("uid-" + container)},
		})
	}
	a.start(t)
	first, second := newSpace(t, "first"), newSpace(t, "second")
	const sticky = "- {name: management, ifname: eth0, sticky: true}"
	must(t, a.add(t, sandboxOf("c1", first), sticky))
	must(t, a.add(t, sandboxOf("c2", second), sticky))
	if diff := cmp.Diff([]string{"10.10.254.5/16", "fd00:10:10::a0a:fe05/64"}, first.addresses(t, "eth0")); diff != "" {
		t.Errorf("addresses in the pod: %s", diff)
	}
	for _, p := range []struct {
		from, to   *space
		addr, seen string
	}{
		{node, first, "10.10.254.5", "10.10.1.0"}, {node, first, "fd00:10:10::a0a:fe05", "fd00:10:10::a0a:100"},
		{first, second, "10.10.254.6", "10.10.254.5"},
	} {
		if seen := reach(t, p.from, p.to, p.addr); seen != p.seen {
			t.Errorf("%s was reached by %s, want %s", p.addr, seen, p.seen)
		}
	}
	must(t, a.del(t, sandboxOf("c1", first)))
	must(t, a.del(t, sandboxOf("c2", second)))
	a.nothingLeft(t, "eth1")
}
