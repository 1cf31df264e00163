// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Of two NICs behind a physical network, the one that a pod stands on counts.
func TestAPodIsAsReadyAsItsOwnNIC(t *testing.T) {
	for nic, want := range map[string]string{"": "True", "ens1": "True", "ens2": "False"} {
		svc, pod, known := example(t)
		on := attachment("data", "eth1", "10.20.0.5")
		on.NIC = nic
		attach(pod, on)
		groups := tell(publish(svc, parsed(t, "data"), []*corev1.Pod{pod}, known).groups)
		if diff := cmp.Diff([]string{"web 10.20.0.5 " + want}, groups[0].Pods); diff != "" {
			t.Errorf("on NIC %q (-want +got):\n%s", nic, diff)
		}
	}
}

func TestDownNICs(t *testing.T) {
	node := &v1alpha1.NodeNetwork{Status: v1alpha1.NodeNetworkStatus{
		PhysicalNetworks: []v1alpha1.NodePhysicalNetwork{{Name: "phy-net1", Ready: true, Interfaces: []string{"ens1", "ens2", "ens3", "ens4"}}},
		Interfaces: []v1alpha1.NodeInterfaceStatus{
			{Name: "ens1", State: v1alpha1.OperStateUp}, {Name: "ens2", State: v1alpha1.OperStateDown}, {Name: "ens3", InUse: true}, // in a pod
			{Name: "eno1", State: v1alpha1.OperStateDown}, // of no physical network
		},
	}}
	if diff := cmp.Diff(map[string]bool{"ens2": true}, downNICs(node)); diff != "" {
		t.Errorf("down (-want +got):\n%s", diff)
	}
}
