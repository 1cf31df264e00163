// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package crds

import (
	"context"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

func block(name string, edit func(*v1alpha1.IPBlockSpec)) *v1alpha1.IPBlock {
	b := &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.IPBlockSpec{Network: "data", NetworkUID: "u1", CIDR: "10.20.0.64/26", NodeName: "worker", NodeUID: "u2"},
	}
	if edit != nil {
		edit(&b.Spec)
	}
	return b
}

func TestIPBlockCreate(t *testing.T) {
	const wrongName = "metadata.name must be <network>.<cidr> with ':' and '/' written as '-'"
	tests := []struct {
		name, object string
		edit         func(*v1alpha1.IPBlockSpec)
		want         string
	}{
		{"IPv4", "data.10.20.0.64-26", nil, ""},
		{"IPv6", "data.fd00-20---122", func(s *v1alpha1.IPBlockSpec) { s.CIDR = "fd00:20::/122" }, ""},
		{"named after another network", "management.10.20.0.64-26", nil, wrongName},
		{"named after another block", "data.10.20.0.128-26", nil, wrongName},
		{"second name for the same block", "data.fd00-20-0--0-122", func(s *v1alpha1.IPBlockSpec) { s.CIDR = "fd00:20:0::0/122" }, "spec.cidr must be in canonical form"},
		{"not aligned", "data.10.20.0.65-26", func(s *v1alpha1.IPBlockSpec) { s.CIDR = "10.20.0.65/26" }, "has host bits set"},
		{"no CIDR", "data.x", func(s *v1alpha1.IPBlockSpec) { s.CIDR = "x" }, "must be a CIDR"},
		{"no node", "data.10.20.0.64-26", func(s *v1alpha1.IPBlockSpec) { s.NodeName = "" }, "spec.nodeName"},
		{"no network's UID", "data.10.20.0.64-26", func(s *v1alpha1.IPBlockSpec) { s.NetworkUID = "" }, "spec.networkUID"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tryCreate(t, block(tt.object, tt.edit), tt.want) })
	}
}

func TestIPBlockIsClaimedOnce(t *testing.T) {
	tryCreate(t, block("data.10.20.0.64-26", nil), "")
	tryCreate(t, block("data.10.20.0.64-26", func(s *v1alpha1.IPBlockSpec) { s.NodeName = "worker2" }), "already exists")
}

func TestOnlyNodeUIDAndTunnelAddressOfAnIPBlockMayChange(t *testing.T) {
	const name, immutable = "data.10.20.0.64-26", "spec is immutable but for nodeUID and vtep: delete the block to release it"
	tests := map[string]struct {
		edit func(*v1alpha1.IPBlockSpec)
		want string
	}{
		"node UID":    {func(s *v1alpha1.IPBlockSpec) { s.NodeUID = "u3" }, ""},
		"VTEP":        {func(s *v1alpha1.IPBlockSpec) { s.VTEP = "fe80::2" }, ""},
		"no VTEP":     {func(s *v1alpha1.IPBlockSpec) { s.VTEP = "x" }, "must be an IP address"},
		"node":        {func(s *v1alpha1.IPBlockSpec) { s.NodeName = "worker2" }, immutable},
		"network UID": {func(s *v1alpha1.IPBlockSpec) { s.NetworkUID = "u3" }, immutable},
		"network":     {func(s *v1alpha1.IPBlockSpec) { s.Network = "management" }, immutable},
		"CIDR":        {func(s *v1alpha1.IPBlockSpec) { s.CIDR = "10.20.0.128/26" }, immutable},
	}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) { tryUpdate(t, block(name, nil), block(name, tt.edit), tt.want) })
	}
}

func TestIPBlockFinalizerMayChange(t *testing.T) {
	const name = "data.10.20.0.64-26"
	after := block(name, nil)
	after.Labels = map[string]string{"seen": "yes"}
	tryUpdate(t, block(name, nil), after, "")
}

func TestIPBlocksAreSelectedByNodeAndNetwork(t *testing.T) {
	tryCreate(t, block("data.10.20.0.64-26", nil), "")
	tryCreate(t, block("data.10.20.0.128-26", func(s *v1alpha1.IPBlockSpec) { s.CIDR, s.NodeName = "10.20.0.128/26", "worker2" }), "")
	for field, value := range map[string]string{v1alpha1.FieldIPBlockNodeName: "worker2", v1alpha1.FieldIPBlockNetwork: "data"} {
		var list v1alpha1.IPBlockList
		if err := env.client.List(t.Context(), &list, client.MatchingFields{field: value}); err != nil {
			t.Fatal(err)
		}
		want := map[string]int{v1alpha1.FieldIPBlockNodeName: 1, v1alpha1.FieldIPBlockNetwork: 2}[field]
		if len(list.Items) != want {
			t.Errorf("%s=%s selects %d blocks, want %d", field, value, len(list.Items), want)
		}
	}
}

func claim(name string, edit func(*v1alpha1.IPClaimSpec)) *v1alpha1.IPClaim {
	c := &v1alpha1.IPClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.IPClaimSpec{
			Network: "data", Address: "10.20.254.5",
			Owner: v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerPod, Namespace: "team", Name: "db-0", Interface: "net1"},
		},
	}
	if edit != nil {
		edit(&c.Spec)
	}
	return c
}

func TestIPClaimCreate(t *testing.T) {
	const wrongName = "metadata.name must be <network>.<address> with ':' written as '-'"
	reference := v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerReference, Namespace: "team", Name: "vm-1"}
	tests := []struct {
		name, object string
		edit         func(*v1alpha1.IPClaimSpec)
		want         string
	}{
		{"IPv4", "data.10.20.254.5", nil, ""},
		{"IPv6", "data.fd00-20--5", func(s *v1alpha1.IPClaimSpec) { s.Address = "fd00:20::5" }, ""},
		{"of a reference", "data.10.20.254.5", func(s *v1alpha1.IPClaimSpec) { s.Owner = reference }, ""},
		{"named after another address", "data.10.20.254.6", nil, wrongName},
		{"named after another network", "web.10.20.254.5", nil, wrongName},
		{"second name for the same address", "data.fd00-20-0--5", func(s *v1alpha1.IPClaimSpec) { s.Address = "fd00:20:0::5" }, "spec.address must be in canonical form"},
		{"no address", "data.x", func(s *v1alpha1.IPClaimSpec) { s.Address = "x" }, "must be an IP address"},
		{"a pod without interface", "data.10.20.254.5", func(s *v1alpha1.IPClaimSpec) { s.Owner.Interface = "" }, "interface is required beside kind Pod"},
		{"a reference with interface", "data.10.20.254.5", func(s *v1alpha1.IPClaimSpec) { s.Owner = reference; s.Owner.Interface = "net1" }, "interface must be left out beside kind Reference"},
		{"unknown kind of owner", "data.10.20.254.5", func(s *v1alpha1.IPClaimSpec) { s.Owner.Kind = "Node" }, "spec.owner.kind"},
		{"no namespace", "data.10.20.254.5", func(s *v1alpha1.IPClaimSpec) { s.Owner.Namespace = "" }, "spec.owner.namespace"},
		{"unknown policy", "data.10.20.254.5", func(s *v1alpha1.IPClaimSpec) { s.ReclaimPolicy = "Recycle" }, "spec.reclaimPolicy"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tryCreate(t, claim(tt.object, tt.edit), tt.want) })
	}
}

func TestIPClaimSpecIsImmutable(t *testing.T) {
	const name, immutable = "data.10.20.254.5", "spec is immutable but for reclaimPolicy"
	tests := map[string]struct {
		edit func(*v1alpha1.IPClaimSpec)
		want string
	}{
		"owner":         {func(s *v1alpha1.IPClaimSpec) { s.Owner.Name = "db-1" }, immutable},
		"network's UID": {func(s *v1alpha1.IPClaimSpec) { s.NetworkUID = "u1" }, immutable},
		"policy":        {func(s *v1alpha1.IPClaimSpec) { s.ReclaimPolicy = v1alpha1.IPClaimDelete }, ""},
	}
	for field, tt := range tests {
		t.Run(field, func(t *testing.T) { tryUpdate(t, claim(name, nil), claim(name, tt.edit), tt.want) })
	}
}

// TestIPClaimsAreSelectedByNode: an agent watches those of its node only.
func TestIPClaimsAreSelectedByNode(t *testing.T) {
	held := claim("data.10.20.254.7", func(s *v1alpha1.IPClaimSpec) { s.Address = "10.20.254.7" })
	for _, c := range []*v1alpha1.IPClaim{claim("data.10.20.254.6", func(s *v1alpha1.IPClaimSpec) { s.Address = "10.20.254.6" }), held} {
		if err := env.client.Create(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = env.client.Delete(context.Background(), c) })
	}
	held.Status.NodeName, held.Status.PodUID = "worker2", "u1"
	if err := env.client.Status().Update(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]int{v1alpha1.FieldIPClaimNodeName: 1, v1alpha1.FieldIPClaimNetwork: 2} {
		value := map[string]string{v1alpha1.FieldIPClaimNodeName: "worker2", v1alpha1.FieldIPClaimNetwork: "data"}[field]
		var list v1alpha1.IPClaimList
		if err := env.client.List(t.Context(), &list, client.MatchingFields{field: value}); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != want {
			t.Errorf("%s=%s selects %d claims, want %d", field, value, len(list.Items), want)
		}
	}
}

func TestPhysicalNetworkCreate(t *testing.T) {
	choose := func(s v1alpha1.InterfaceSelector) v1alpha1.PhysicalNetworkSpec {
		return v1alpha1.PhysicalNetworkSpec{NodeInterfaces: []v1alpha1.NodeInterface{{Interface: s}}}
	}
	tests := []struct {
		name, object string
		spec         v1alpha1.PhysicalNetworkSpec
		want         string
	}{
		{"alias only", "phy-net0", v1alpha1.PhysicalNetworkSpec{Description: "rack uplinks"}, ""},
		{"by name", "phy-net0", choose(v1alpha1.InterfaceSelector{Name: "eth1"}), ""},
		{"by MAC address", "phy-net0", choose(v1alpha1.InterfaceSelector{MACAddress: "02:42:0A:00:00:01"}), ""},
		{"by PCI address", "phy-net0", choose(v1alpha1.InterfaceSelector{PCIAddress: "0000:3b:00.0"}), ""},
		{"the talk's underscore", "phy_net0", v1alpha1.PhysicalNetworkSpec{}, "phy_net0"},
		{"a dot", "phy.net0", v1alpha1.PhysicalNetworkSpec{}, "metadata.name must be a DNS label"},
		{"two selectors", "phy-net0", choose(v1alpha1.InterfaceSelector{Name: "eth1", Driver: "ice"}), "spec.nodeInterfaces[0].interface"},
		{"no selector", "phy-net0", choose(v1alpha1.InterfaceSelector{}), "spec.nodeInterfaces[0].interface"},
		{"NIC name of 16 characters", "phy-net0", choose(v1alpha1.InterfaceSelector{Name: label(16)}), "spec.nodeInterfaces[0].interface.name"},
		{"NIC name with a slash", "phy-net0", choose(v1alpha1.InterfaceSelector{Name: "eth/1"}), "spec.nodeInterfaces[0].interface.name"},
		{"no MAC address", "phy-net0", choose(v1alpha1.InterfaceSelector{MACAddress: "02:42"}), "spec.nodeInterfaces[0].interface.macAddress"},
		{"no PCI address", "phy-net0", choose(v1alpha1.InterfaceSelector{PCIAddress: "3b:00.0"}), "spec.nodeInterfaces[0].interface.pciAddress"},
		{"MTU too small", "phy-net0", v1alpha1.PhysicalNetworkSpec{MTU: 68}, "spec.mtu"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tryCreate(t, &v1alpha1.PhysicalNetwork{ObjectMeta: metav1.ObjectMeta{Name: tt.object}, Spec: tt.spec}, tt.want)
		})
	}
}

// TestNodeNetworkTakesTheNamesOfNodes: Node names have dots.
func TestNodeNetworkTakesTheNamesOfNodes(t *testing.T) {
	tryCreate(t, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "ip-10-0-0-1.eu.example.org"}}, "")
}

// TestHeldAddressesNameFixedOnes: the address is that of an IPClaim.
func TestHeldAddressesNameFixedOnes(t *testing.T) {
	node := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "holds"}}
	if err := env.client.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, node) })
	for address, want := range map[string]string{
		"10.20.254.7": "", "fd00:10:20::7": "", "": "",
		label(40): "status.held[0].address: Too long",
	} {
		held := node.DeepCopy()
		held.Status.Held = []v1alpha1.HeldAddresses{{Network: "data", Count: 1, PodUID: "u", Fixed: true, Address: address}}
		check(t, env.client.Status().Patch(t.Context(), held, client.MergeFrom(node)), want)
	}
}
