// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipclaims

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

func TestHolds(t *testing.T) {
	claim := func(kind v1alpha1.IPClaimOwnerKind, name, ifname, address, podUID string) *v1alpha1.IPClaim {
		return &v1alpha1.IPClaim{
			Spec: v1alpha1.IPClaimSpec{
				Network: "data", Address: v1alpha1.IP(address),
				Owner: v1alpha1.IPClaimOwner{Kind: kind, Namespace: "team", Name: name, Interface: ifname},
			},
			Status: v1alpha1.IPClaimStatus{PodUID: types.UID(podUID)},
		}
	}
	byPod, byReference := v1alpha1.IPClaimOwnerPod, v1alpha1.IPClaimOwnerReference
	sticky := podnetworks.Request{Name: "data", IfName: "net1", Sticky: true}
	named := podnetworks.Request{Name: "data", IfName: "net1", IPs: []string{"fd00::a0a:5", "10.10.0.5"}}
	vm := podnetworks.Request{Name: "data", IfName: "net1", IPAMClaimReference: "vm-1"}
	elsewhere := podnetworks.Request{Name: "web", IfName: "net1", Sticky: true}
	tests := map[string]struct {
		claim   *v1alpha1.IPClaim
		request podnetworks.Request
		want    bool
	}{
		"sticky":                        {claim(byPod, "db-0", "net1", "10.10.0.9", "u1"), sticky, true},
		"an address by name":            {claim(byPod, "db-0", "net1", "10.10.0.5", "u1"), named, true},
		"another address":               {claim(byPod, "db-0", "net1", "10.10.0.6", "u1"), named, false},
		"by reference":                  {claim(byReference, "vm-1", "", "10.10.0.5", "u1"), vm, true},
		"another reference":             {claim(byReference, "vm-2", "", "10.10.0.5", "u1"), vm, false},
		"the pod's name as a reference": {claim(byPod, "vm-1", "net1", "10.10.0.5", "u1"), vm, false},
		"another interface":             {claim(byPod, "db-0", "net2", "10.10.0.5", "u1"), sticky, false},
		"another network":               {claim(byPod, "db-0", "net1", "10.10.0.5", "u1"), elsewhere, false},
		"handed to the pod before":      {claim(byPod, "db-0", "net1", "10.10.0.5", "u0"), sticky, false},
		"handed to nobody":              {claim(byPod, "db-0", "net1", "10.10.0.5", ""), sticky, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Holds(tt.claim, "team", "db-0", "u1", &tt.request); got != tt.want {
				t.Errorf("%t, want %t", got, tt.want)
			}
			if Holds(tt.claim, "other", "db-0", "u1", &tt.request) {
				t.Error("a pod of another namespace holds it")
			}
		})
	}
	if Holds(claim(byPod, "db-0", "net1", "10.10.0.9", ""), "team", "db-0", "", &sticky) {
		t.Error("a pod without UID holds what nobody does")
	}
}

func TestReclaimPolicyKeepsWhatFollowsAName(t *testing.T) {
	for want, requests := range map[v1alpha1.IPClaimReclaimPolicy][]podnetworks.Request{
		v1alpha1.IPClaimRetain: {{Sticky: true}, {IPAMClaimReference: "vm-1"}, {Sticky: true, IPs: []string{"10.10.0.5"}}},
		v1alpha1.IPClaimDelete: {{IPs: []string{"10.10.0.5"}}},
	} {
		for i := range requests {
			if got := ReclaimPolicy(&requests[i]); got != want {
				t.Errorf("%+v: %s, want %s", requests[i], got, want)
			}
		}
	}
}

func TestTheOldestClaimIsChosen(t *testing.T) {
	owner := v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerPod, Namespace: "team", Name: "db-0", Interface: "net1"}
	claim := func(address string, age time.Duration, deleted bool) *v1alpha1.IPClaim {
		made := metav1.NewTime(time.Unix(1000, 0).Add(-age))
		c := &v1alpha1.IPClaim{
			ObjectMeta: metav1.ObjectMeta{Name: "data." + address, CreationTimestamp: made},
			Spec:       v1alpha1.IPClaimSpec{Network: "data", Address: v1alpha1.IP(address), Owner: owner},
		}
		if deleted {
			c.DeletionTimestamp = &made
		}
		return c
	}
	young, old, goes, elder := claim("10.10.0.1", time.Minute, false), claim("10.10.0.3", time.Hour, false), claim("10.10.0.4", 2*time.Hour, true), claim("10.10.0.2", time.Hour, false)
	tests := map[string]struct {
		claims []*v1alpha1.IPClaim
		ips    []string
		want   *v1alpha1.IPClaim
	}{
		"none":                                {},
		"the oldest":                          {claims: []*v1alpha1.IPClaim{young, old}, want: old},
		"of one second by name":               {claims: []*v1alpha1.IPClaim{young, old, elder}, want: elder},
		"one that stays":                      {claims: []*v1alpha1.IPClaim{goes, young}, want: young},
		"one that goes, if there is no other": {claims: []*v1alpha1.IPClaim{goes}, want: goes},
		"the address that is asked for":       {claims: []*v1alpha1.IPClaim{young, old}, ips: []string{"10.10.0.1"}, want: young},
		"no address that is asked for":        {claims: []*v1alpha1.IPClaim{young, old}, ips: []string{"10.10.0.9"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			request := podnetworks.Request{Name: "data", IfName: "net1", Sticky: true, IPs: tt.ips}
			if got := Choose(tt.claims, owner, &request); got != tt.want {
				t.Errorf("chose %+v, want %+v", got, tt.want)
			}
		})
	}
}
