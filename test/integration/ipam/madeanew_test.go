// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
)

// terminating waits until the Network says what it waits for.
func (w *world) terminating(network *v1alpha1.Network, part string) {
	w.t.Helper()
	w.eventually("the Network waits for "+part, func() string {
		w.must(w.Get(w.t.Context(), client.ObjectKeyFromObject(network), network))
		for _, c := range network.Status.Conditions {
			if c.Reason == v1alpha1.ReasonTerminating && strings.Contains(c.Message, part) {
				return ""
			}
		}
		return fmt.Sprintf("its conditions are %+v", network.Status.Conditions)
	})
}

// gone waits until there is no such Network, and no block of it.
func (w *world) gone(network *v1alpha1.Network) {
	w.t.Helper()
	w.eventually("Network and blocks are gone", func() string {
		err := w.Get(w.t.Context(), client.ObjectKeyFromObject(network), &v1alpha1.Network{})
		if blocks := w.blocks(network.Name); !apierrors.IsNotFound(err) || len(blocks) > 0 {
			return fmt.Sprintf("reading it says %v, blocks are %v", err, blocks)
		}
		return ""
	})
}

// within fails unless all leases of the agent lie in a subnet.
func within(t *testing.T, a *agent, subnet string) {
	t.Helper()
	for _, lease := range a.Leases() {
		if !netip.MustParsePrefix(subnet).Contains(lease.Address) {
			t.Errorf("%s has %s, which is not of %s", lease.PodName, lease.Address, subnet)
		}
	}
}

func TestANetworkInUseWaitsForItsPodsAndIsMadeAnewWithAnotherSubnet(t *testing.T) {
	w := newWorld(t)
	w.controller()
	w.node("again-0", "again")
	network := w.backedNetwork("again", v1alpha1.NetworkSpec{Subnet: "10.62.0.0/28"})
	owner := w.pods("again-0", "again", 1)[0]
	a := w.agent("again-0")
	a.reserve(owner, "again")
	lease := a.Leases()[0]

	w.must(w.Delete(t.Context(), network))
	w.terminating(network, "1 pod on it (default/"+owner.PodName+")")
	w.kill(owner)
	w.terminating(network, "waits for 1 address block that nodes hold")
	w.stays("the container runs on", lease, "again-0")
	w.must(a.Release(t.Context(), owner.ContainerID))
	w.gone(network)

	w.backedNetwork("again", v1alpha1.NetworkSpec{Subnet: "10.63.0.0/28"})
	a.reserve(w.pods("again-0", "again", 1)[0], "again")
	within(t, a, "10.63.0.0/28")
	w.agree("again", a)
}

// Somebody takes the finalizer off: the Network goes although pods live on it.
func TestNothingOfANetworkThatWasTornAwayIsGivenOutUnderItsName(t *testing.T) {
	w := newWorld(t)
	w.controller()
	w.node("torn-0", "torn")
	network := w.backedNetwork("torn", v1alpha1.NetworkSpec{Subnet: "10.66.0.0/28"})
	owner := w.pods("torn-0", "torn", 1)[0]
	a := w.agent("torn-0")
	address := a.reserve(owner, "torn")
	former := a.Leases()[0]

	w.must(w.Delete(t.Context(), network))
	w.eventually("the finalizer is torn off", func() string {
		patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
		w.must(client.IgnoreNotFound(w.Patch(t.Context(), network.DeepCopy(), patch)))
		if err := w.Get(t.Context(), client.ObjectKeyFromObject(network), &v1alpha1.Network{}); !apierrors.IsNotFound(err) {
			return fmt.Sprintf("reading it says %v", err)
		}
		return ""
	})
	w.backedNetwork("torn", v1alpha1.NetworkSpec{Subnet: "10.67.0.0/27"})
	var pods []ipam.Owner
	for _, pod := range w.pods("torn-0", "torn", 8) {
		a.reserve(pod, "torn")
		pods = append(pods, pod)
	}
	leases := a.Leases()
	if !slices.Contains(leases, former) {
		t.Errorf("%s is not among %+v", address, leases)
	}
	for _, lease := range leases {
		if lease != former && !netip.MustParsePrefix("10.67.0.0/27").Contains(lease.Address) {
			t.Errorf("%s has %s of the former Network", lease.PodName, lease.Address)
		}
	}
	w.stays("a pod lives in the former Network's block", former, "torn-0")

	// It survives a restart of the agent, too.
	a.stop()
	a.start()
	if again := a.reserve(owner, "torn"); again != address {
		t.Errorf("the pod moved from %s to %s", address, again)
	}
	w.kill(owner)
	w.must(a.Release(t.Context(), owner.ContainerID))
	w.eventually("the former Network's block vanishes", func() string {
		if block := w.blockOf(former); block != nil {
			return fmt.Sprintf("it is %+v", block)
		}
		return ""
	})
	time.Sleep(grace)
	w.must(a.Release(t.Context(), pods[0].ContainerID))
	a.reserve(pods[0], "torn")
	within(t, a, "10.67.0.0/27")
	w.agree("torn", a)
}
