// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

func addresses(reason string) []metav1.Condition {
	if reason == "" {
		return nil
	}
	return []metav1.Condition{{Type: v1alpha1.ConditionAddressesAvailable, Status: "True", Reason: reason}}
}

func TestAddressesRunLowBeforeTheyAreExhausted(t *testing.T) {
	const left, low, none = v1alpha1.ReasonAddressesLeft, v1alpha1.ReasonAddressesRunningLow, v1alpha1.ReasonAddressesExhausted
	tests := map[string]struct {
		before         string
		used, capacity int64
		want           string
	}{
		"new and empty":               {"", 0, 100, left},
		"new and low":                 {"", 90, 100, low},
		"below the threshold":         {left, 89, 100, left},
		"at the threshold":            {left, 90, 100, low},
		"the last one":                {low, 99, 100, low},
		"full":                        {low, 100, 100, none},
		"full at once":                {left, 100, 100, none},
		"more used than there are":    {none, 101, 100, none},
		"one is free again":           {none, 99, 100, low},
		"between the thresholds":      {low, 80, 100, low},
		"below both":                  {low, 79, 100, left},
		"many are free again":         {none, 79, 100, left},
		"it grew":                     {none, 100, 1000, left},
		"it grew by little":           {none, 100, 120, low},
		"of few addresses one is low": {left, 12, 13, low},
		"of few addresses two return": {low, 10, 13, left},
		"no address at all":           {"", 0, 0, none},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := availability(addresses(tt.before), v1alpha1.AddressCounts{Used: tt.used, Capacity: tt.capacity})
			if got.Reason != tt.want || (got.Status == metav1.ConditionTrue) == (tt.want == none) {
				t.Errorf("AddressesAvailable is %s (%s), want %s", got.Status, got.Reason, tt.want)
			}
		})
	}
}

func TestAvailabilityCountsWhatTheStatusCounts(t *testing.T) {
	network := aNetwork("data", subnet("10.10.0.0/28"), func(n *v1alpha1.Network) { n.Spec.BlockSize = 16 }) // 13 addresses
	twelve := facts(network, func(f *Facts) {
		f.Pods = []corev1.Pod{
			aPod("two", "data,data"),
			aPod("going", "data", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: epoch} }),
			aPod("fixed", `[{"name":"data","ips":["10.10.0.9"]}]`),
		}
		f.Holders = []v1alpha1.NodeNetwork{
			aNode("worker", holds("data", 8, ""), holds("data", 1, "a finished pod"), holds("data", 5, "two-uid")),
		}
	})
	status := Evaluate(twelve)
	if diff := cmp.Diff(v1alpha1.AddressCounts{Capacity: 13, Used: 12}, status.Addresses); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	condition := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionAddressesAvailable)
	if condition == nil || condition.Reason != v1alpha1.ReasonAddressesRunningLow || condition.ObservedGeneration != network.Generation {
		t.Errorf("AddressesAvailable = %+v, want AddressesRunningLow of generation %d", condition, network.Generation)
	}
}

func TestThatAddressesReturnIsWrittenWithTheCounters(t *testing.T) {
	const left, low, none = v1alpha1.ReasonAddressesLeft, v1alpha1.ReasonAddressesRunningLow, v1alpha1.ReasonAddressesExhausted
	tests := map[string]struct {
		have, want string
		other      bool // another condition changes too
		atOnce     bool
	}{
		"first":                    {"", left, false, true},
		"low":                      {left, low, false, true},
		"exhausted":                {low, none, false, true},
		"one returns":              {none, low, false, false},
		"many return":              {none, left, false, false},
		"one returns, Ready moves": {none, low, true, true},
		"gone with its plan":       {none, "", false, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			status := func(reason string, ready metav1.ConditionStatus) *v1alpha1.NetworkStatus {
				return &v1alpha1.NetworkStatus{Conditions: append(addresses(reason), metav1.Condition{Type: "Ready", Status: ready})}
			}
			ready := metav1.ConditionTrue
			if tt.other {
				ready = metav1.ConditionFalse
			}
			if got := transition(status(tt.want, ready), status(tt.have, metav1.ConditionTrue)); got != tt.atOnce {
				t.Errorf("written at once: %t, want %t", got, tt.atOnce)
			}
		})
	}
}

func TestOnlyChangesOfAvailabilityAreEvents(t *testing.T) {
	const left, low, none = v1alpha1.ReasonAddressesLeft, v1alpha1.ReasonAddressesRunningLow, v1alpha1.ReasonAddressesExhausted
	tests := map[string]struct{ have, want, event string }{
		"a new Network":      {"", left, ""},
		"new, and full":      {"", none, "Warning"},
		"crosses":            {left, low, "Warning"},
		"full":               {low, none, "Warning"},
		"the same":           {low, low, ""},
		"room for a pod":     {none, low, "Warning"},
		"it recovers":        {low, left, "Normal"},
		"recovers from full": {none, left, "Normal"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			want := addresses(tt.want)
			if tt.want == none {
				want[0].Status = metav1.ConditionFalse
			}
			got := ""
			for _, condition := range changed(addresses(tt.have), want) {
				got = eventType(condition)
			}
			if got != tt.event {
				t.Errorf("event %q, want %q", got, tt.event)
			}
		})
	}
}
