// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package policies

import (
	"context"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

func newNetwork(name string, edit func(*v1alpha1.NetworkSpec)) *v1alpha1.Network {
	n := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "phy-net0", Plugin: v1alpha1.PluginBridge, Subnet: "10.10.0.0/16"},
	}
	if edit != nil {
		edit(&n.Spec)
	}
	return n
}

// knownNetwork creates a Network and waits until the policy sees it: the API
// server reads parameters from a cache.
func knownNetwork(t *testing.T, network *v1alpha1.Network) {
	t.Helper()
	create(t, network)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := awaitRefusal(ctx, "netplane-ipblock-in-network", func() error {
		return env.admin.Create(ctx, newBlock(network, "203.0.113.0/30", "n"), client.DryRunAll)
	}); err != nil {
		t.Fatal(err)
	}
}

func TestIPBlockLiesInItsNetwork(t *testing.T) {
	const noSubnet, wrongSize, inStatic = "lies in no subnet of the Network", "does not have the", "lies in the staticRange"
	networks := map[string]*v1alpha1.Network{
		"plain":    newNetwork("plain", nil),
		"grown":    newNetwork("grown", func(s *v1alpha1.NetworkSpec) { s.AdditionalSubnets = []v1alpha1.CIDR{"10.12.0.0/20"} }),
		"static":   newNetwork("static", func(s *v1alpha1.NetworkSpec) { s.StaticRange = "10.10.254.0/24" }),
		"sized":    newNetwork("sized", func(s *v1alpha1.NetworkSpec) { s.BlockSize = 256 }),
		"twofour":  newNetwork("twofour", func(s *v1alpha1.NetworkSpec) { s.Subnet = "10.30.0.0/24" }),
		"twoeight": newNetwork("twoeight", func(s *v1alpha1.NetworkSpec) { s.Subnet = "10.30.1.0/28" }),
		"thirty":   newNetwork("thirty", func(s *v1alpha1.NetworkSpec) { s.Subnet = "10.30.2.0/30" }),
		"six":      newNetwork("six", func(s *v1alpha1.NetworkSpec) { s.Subnet = "fd00:30::/64" }),
		"sixsmall": newNetwork("sixsmall", func(s *v1alpha1.NetworkSpec) { s.Subnet = "fd00:31::/120" }),
		"dual":     newNetwork("dual", func(s *v1alpha1.NetworkSpec) { s.Subnet6 = "fd00:32::/64" }),
		"delegate": newNetwork("delegate", func(s *v1alpha1.NetworkSpec) { s.Plugin, s.Subnet = "Flannel", "" }),
	}
	for _, network := range networks {
		knownNetwork(t, network)
	}
	tests := []struct{ network, cidr, want string }{
		{"plain", "10.10.0.0/26", ""},
		{"plain", "10.10.255.192/26", ""},
		{"plain", "10.11.0.0/26", noSubnet + " plain: claim a block of 10.10.0.0/16"},
		{"plain", "10.10.0.0/24", "IPBlock plain.10.10.0.0-24: spec.cidr 10.10.0.0/24 " + wrongSize + " 64 addresses of a block of the Network plain"},
		{"plain", "10.10.0.0/16", wrongSize},
		{"plain", "10.0.0.0/8", noSubnet},
		{"plain", "fd00:30::/122", noSubnet},
		{"grown", "10.12.0.0/26", ""},
		{"grown", "10.13.0.0/26", noSubnet},
		{"static", "10.10.254.64/26", inStatic},
		{"static", "10.10.253.64/26", ""},
		{"sized", "10.10.1.0/24", ""},
		{"sized", "10.10.1.0/26", wrongSize + " 256"},
		{"twofour", "10.30.0.16/28", ""},
		{"twofour", "10.30.0.16/29", wrongSize + " 16"},
		{"twoeight", "10.30.1.8/29", ""},
		{"twoeight", "10.30.1.8/30", wrongSize + " 8"},
		{"thirty", "10.30.2.0/30", ""},
		{"six", "fd00:30::40/122", ""},
		{"six", "fd00:30:0:0:1::/122", noSubnet}, // beyond the first 2^32 addresses
		{"sixsmall", "fd00:31::10/124", ""},
		{"dual", "10.10.0.0/26", ""},
		{"dual", "fd00:32::/122", noSubnet},
		{"delegate", "10.10.0.0/26", noSubnet},
	}
	for _, tt := range tests {
		t.Run(tt.network+" "+tt.cidr, func(t *testing.T) {
			block := newBlock(networks[tt.network], tt.cidr, "worker")
			err := env.admin.Create(t.Context(), block)
			if err == nil {
				removeAfter(t, block)
			}
			check(t, err, tt.want)
		})
	}
}

func TestIPBlockBelongsToTheLivingNetwork(t *testing.T) {
	network := newNetwork("living", nil)
	knownNetwork(t, network)
	stale := network.DeepCopy()
	stale.UID = "another"
	check(t, env.admin.Create(t.Context(), newBlock(stale, "10.10.0.0/26", "worker")),
		"spec.networkUID is not that of the Network living, which was made anew: read it again")

	network.Finalizers = []string{v1alpha1.FinalizerNetwork}
	if err := env.admin.Update(t.Context(), network); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		network.Finalizers = nil
		if err := env.admin.Update(context.WithoutCancel(t.Context()), network); err != nil {
			t.Errorf("letting the Network go: %v", err)
		}
	})
	if err := env.admin.Delete(t.Context(), network); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := awaitRefusal(ctx, "the Network living is being deleted: it gives out no more blocks", func() error {
		return env.admin.Create(ctx, newBlock(network, "10.10.0.0/26", "worker"), client.DryRunAll)
	}); err != nil {
		t.Error(err)
	}
	if err := env.admin.Get(t.Context(), client.ObjectKeyFromObject(network), network); err != nil {
		t.Fatal(err)
	}
}
