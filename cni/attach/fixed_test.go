// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// claimFor is a claim of a pod's interface, handed to the pod of container c1.
func claimFor(network, ifname, address string) *v1alpha1.IPClaim {
	return &v1alpha1.IPClaim{
		ObjectMeta: metav1.ObjectMeta{Name: network + "." + address},
		Spec: v1alpha1.IPClaimSpec{
			Network: network, NetworkUID: types.UID(network), Address: v1alpha1.IP(address),
			Owner: v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerPod, Namespace: "default", Name: "pod-c1", Interface: ifname},
		},
		Status: v1alpha1.IPClaimStatus{PodUID: "uid-c1", PodName: "pod-c1", NodeName: "node"},
	}
}

func newFixedWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.networks["management"].Spec.StaticRange = "10.10.254.0/24"
	w.networks["data"].Spec.StaticRange = "10.20.254.0/24"
	return w
}

func TestFixedAddressComesFromTheClaim(t *testing.T) {
	w := newFixedWorld(t)
	w.claims = []*v1alpha1.IPClaim{claimFor("data", "net2", "10.20.254.9"), claimFor("data", "net1", "10.20.254.5"), claimFor("management", "eth0", "10.10.254.7")}
	if err := w.add(t.Context(), "c1", "- {name: management, ifname: eth0, ips: ['fd00:10:10::a0a:fe07', 10.10.254.7]}\n- {name: data, sticky: true}"); err != nil {
		t.Fatal(err)
	}
	// The path to eth0 leads over the node's own address, of a block of the node.
	for _, want := range []string{
		"/ns/c1: eth0 macvlan on np-eth1 mac 0a:", " 10.10.254.7/16 fd00:10:10::a0a:fe07/64 route 0.0.0.0/0 via 10.10.0.1 route ::/0 via fd00:10:10::a0a:1",
		"/ns/c1: net1 veth on np-eth1 mac 0a:", " mtu 1500 10.20.254.5/16",
		"host: " + link.ShimName("management", "np-eth1"),
	} {
		if got := w.links.String(); !strings.Contains(got, want) {
			t.Errorf("links lack %q:\n%s", want, got)
		}
	}
}

func TestFixedAddressIsWaitedForAWhile(t *testing.T) {
	w := newFixedWorld(t)
	bound := time.AfterFunc(3*cachePoll, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.claims = []*v1alpha1.IPClaim{claimFor("data", "net1", "10.20.254.5")}
	})
	defer bound.Stop()
	if err := w.add(t.Context(), "c1", "- {name: data, sticky: true}"); err != nil {
		t.Error(err)
	}
}

func TestNoFixedAddressWithoutAClaimOfThePod(t *testing.T) {
	const none = `network "data": no IPClaim gives pod default/pod-c1 its fixed address on this node yet: see kubectl get ipclaims, and the pod's events`
	change := func(edit func(*v1alpha1.IPClaim)) *v1alpha1.IPClaim {
		claim := claimFor("data", "net1", "10.20.254.5")
		edit(claim)
		return claim
	}
	for name, test := range map[string]struct {
		claim *v1alpha1.IPClaim
		want  string
	}{
		"of another pod":           {change(func(c *v1alpha1.IPClaim) { c.Status.PodUID = "uid-c0" }), none},
		"of another namespace":     {change(func(c *v1alpha1.IPClaim) { c.Spec.Owner.Namespace = "other" }), none},
		"of another address":       {change(func(c *v1alpha1.IPClaim) { c.Spec.Address = "10.20.254.6" }), none},
		"of a Network before":      {change(func(c *v1alpha1.IPClaim) { c.Spec.NetworkUID = "before" }), none},
		"outside the static range": {change(func(c *v1alpha1.IPClaim) { c.Spec.Address = "10.20.0.5" }), `IPClaim "data.10.20.254.5": spec.address: 10.20.0.5 does not lie in staticRange 10.20.254.0/24 of network "data"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newFixedWorld(t)
			w.claims = []*v1alpha1.IPClaim{test.claim}
			ips := "10.20.254.5"
			if name == "outside the static range" {
				ips = "10.20.0.5"
			}
			err := w.add(t.Context(), "c1", "- {name: data, ips: ["+ips+"]}")
			var known *wire.Error
			if !errors.As(err, &known) || known.Msg != test.want || known.Code != wire.CodeTryAgain {
				t.Errorf("got %v", err)
			}
			if len(w.leases) > 0 || len(w.files(t)) > 0 {
				t.Errorf("left: %v %v", w.leases, w.files(t))
			}
		})
	}
}
