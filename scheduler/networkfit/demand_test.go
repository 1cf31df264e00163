// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/capacity"
)

// attached is a pod that asks for some networks and has others.
func attached(pod *v1.Pod, text string) *v1.Pod {
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, v1alpha1.AnnotationAttached, text)
	return pod
}

func TestARunningPodTakesTheLargerOfWhatItAsksForAndHas(t *testing.T) {
	for name, test := range map[string]struct {
		asked, attached string
		want            capacity.Demand
	}{
		"nothing":                          {"", "", nil},
		"not attached yet":                 {"data,data", "", capacity.Demand{{Network: "data", Addresses: 2}}},
		"has what it asks for":             {"data,data", "data=2", capacity.Demand{{Network: "data", Addresses: 2}}},
		"asks for more":                    {"data,data,backup", "data=1", capacity.Demand{{Network: "backup", Addresses: 1}, {Network: "data", Addresses: 2}}},
		"asks for less":                    {"data", "backup=1,data=2", capacity.Demand{{Network: "backup", Addresses: 1}, {Network: "data", Addresses: 2}}},
		"asks for nothing":                 {"", "data=2", capacity.Demand{{Network: "data", Addresses: 2}}},
		"asks for what cannot be read":     {"data@", "data=2", capacity.Demand{{Network: "data", Addresses: 2}}},
		"a fixed address instead of one":   {"[{name: data, sticky: true}]", "data=1", capacity.Demand{{Network: "data", Addresses: 1, Fixed: 1}}},
		"what it has cannot be read":       {"data", "many", capacity.Demand{{Network: "data", Addresses: 1}}},
		"asks for nothing and has nothing": {"", "none", nil},
	} {
		t.Run(name, func(t *testing.T) {
			demands := newDemands()
			pod := makePod("p", test.asked)
			if test.attached != "" {
				attached(pod, test.attached)
			}
			for range 2 { // the second is remembered
				if diff := cmp.Diff(test.want, demands.taken(pod), cmpopts.EquateEmpty()); diff != "" {
					t.Error(diff)
				}
			}
			pod.Spec.HostNetwork = true
			if got := demands.taken(pod); got != nil {
				t.Errorf("in the host's network: %v", got)
			}
		})
	}
}

// Whatever a tenant does to the annotation of a pod that is attached, no
// address that it has looks free.
func TestStrippingAnAnnotationFreesNothing(t *testing.T) {
	const full = `node(s) had no free address in network "data"`
	for _, asked := range []string{"", "backup", "data@", "data"} {
		pl := newPlugin(t, makeNetwork("data"), makeNetwork("backup"), makeNode("n", up("data", "backup")), makeBlock("data", "n", 0), makeBlock("backup", "n", 1))
		there := pods(6, "data")
		there = append(there, attached(makePod("changed", asked), "data=1"))
		info := newNodeInfo("n", there...)
		if got := filter(t, pl, makePod("p", "data"), info); got != unschedulable(full) {
			t.Errorf("asking for %q: %v", asked, got)
		}
		info.set(2, there[:6]...)
		if got := filter(t, pl, makePod("p", "data"), info); got != success() {
			t.Errorf("without the pod: %v", got)
		}
	}
}

func TestANetworkThatIsAddedCountsAtOnce(t *testing.T) {
	pl := newPlugin(t, makeNetwork("data"), makeNode("n", up("data")), makeBlock("data", "n", 0))
	info := newNodeInfo("n", append(pods(6, "data"), attached(makePod("plugged", "data@eth1"), ""))...)
	if got := filter(t, pl, makePod("p", "data"), info); got != unschedulable(`node(s) had no free address in network "data"`) {
		t.Error(got)
	}
}

// The pods of a node count for at least what they have and at least what they
// ask for, whatever happens to either, and the memory of it is bounded.
func TestDemandsOfChangedPods(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	demands := newDemands()
	for range maxDemands + 100 {
		uses := []podnetworks.Use{{Network: "a", Addresses: rng.IntN(60)}, {Network: "b", Addresses: rng.IntN(60), Fixed: rng.IntN(60)}}
		pod := attached(makePod("p", fmt.Sprintf("a,b,net%d", rng.IntN(60))), podnetworks.FormatAttached(uses))
		got := capacity.Load(demands.taken(pod))
		for _, use := range uses {
			if got.Of(use.Network) < max(1, use.Addresses) || got.Interfaces(use.Network) < use.Addresses+use.Fixed {
				t.Fatalf("a pod that has %v counts for %v", use, got)
			}
		}
	}
	count := 0
	demands.changed.Range(func(any, any) bool { count++; return true })
	if count > maxDemands {
		t.Errorf("%d pods are remembered, at most %d may be", count, maxDemands)
	}
}
