// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestCountersWaitForTheirInterval(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(epoch)
	p := newPace(Options{Clock: clock, CounterInterval: 30 * time.Second})
	if got := p.wait("a"); got != 0 {
		t.Errorf("before the first write: wait %s, want none", got)
	}
	p.wrote("a")
	clock.SetTime(epoch.Add(10 * time.Second))
	if got := p.wait("a"); got != 20*time.Second {
		t.Errorf("10 s after a write: wait %s, want 20 s", got)
	}
	if got := p.wait("b"); got != 0 {
		t.Errorf("another object: wait %s, want none", got)
	}
	clock.SetTime(epoch.Add(31 * time.Second))
	if got := p.wait("a"); got != 0 {
		t.Errorf("after the interval: wait %s, want none", got)
	}
	p.wrote("b")
	if _, kept := p.written["a"]; kept {
		t.Error("an entry that means nothing any more was kept")
	}
}

func TestWhatIsWrittenAtOnce(t *testing.T) {
	base := func() *v1alpha1.NetworkStatus {
		return &v1alpha1.NetworkStatus{
			ObservedGeneration: 1,
			Conditions:         []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Ready"}},
			Nodes:              v1alpha1.NodeCounts{Ready: 2, Total: 3},
			Addresses:          v1alpha1.AddressCounts{Capacity: 10, Claimed: 5, Used: 1},
		}
	}
	tests := map[string]struct {
		change func(*v1alpha1.NetworkStatus)
		want   bool
	}{
		"used":                {func(s *v1alpha1.NetworkStatus) { s.Addresses.Used++ }, false},
		"claimed":             {func(s *v1alpha1.NetworkStatus) { s.Addresses.Claimed++ }, false},
		"one node of several": {func(s *v1alpha1.NetworkStatus) { s.Nodes.Ready-- }, false},
		"the last ready node": {func(s *v1alpha1.NetworkStatus) { s.Nodes.Ready = 0 }, true},
		"capacity":            {func(s *v1alpha1.NetworkStatus) { s.Addresses.Capacity++ }, true},
		"generation":          {func(s *v1alpha1.NetworkStatus) { s.ObservedGeneration++ }, true},
		"a condition":         {func(s *v1alpha1.NetworkStatus) { s.Conditions[0].Reason = "NoNode" }, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			want := base()
			tt.change(want)
			if got := transition(want, base()); got != tt.want {
				t.Errorf("transition = %t, want %t", got, tt.want)
			}
		})
	}
}

func TestMergeKeepsTransitionTimesAndForeignConditions(t *testing.T) {
	then, now := metav1.NewTime(epoch), epoch.Add(time.Hour)
	have := []metav1.Condition{
		{Type: "Foreign", Status: "True", LastTransitionTime: then},
		{Type: "Ready", Status: "True", Reason: "Ready", LastTransitionTime: then},
		{Type: "Tight", Status: "True", Reason: "FewBlocksLeft", LastTransitionTime: then},
	}
	owned := []string{"Ready", "Tight"}
	got := merge(have, []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Ready", Message: "other"}}, owned, now)
	want := []metav1.Condition{
		{Type: "Foreign", Status: "True", LastTransitionTime: then},
		{Type: "Ready", Status: "True", Reason: "Ready", Message: "other", LastTransitionTime: then},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("same status (-want +got):\n%s", diff)
	}
	got = merge(have[1:2], []metav1.Condition{{Type: "Ready", Status: "False", Reason: "NoNode"}}, owned, now)
	want = []metav1.Condition{{Type: "Ready", Status: "False", Reason: "NoNode", LastTransitionTime: metav1.NewTime(now)}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("another status (-want +got):\n%s", diff)
	}
	if have[1].Status != "True" {
		t.Error("merge changed its input, which belongs to the cache")
	}
}

func TestEventTypes(t *testing.T) {
	tests := map[string]struct {
		condition metav1.Condition
		want      string
	}{
		"ready":       {metav1.Condition{Type: "Ready", Status: "True"}, "Normal"},
		"not ready":   {metav1.Condition{Type: "Ready", Status: "False"}, "Warning"},
		"terminating": {metav1.Condition{Type: "Ready", Status: "False", Reason: "Terminating"}, "Normal"},
		"tight":       {metav1.Condition{Type: "Tight", Status: "True"}, "Warning"},
		"not tight":   {metav1.Condition{Type: "Tight", Status: "False"}, "Normal"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := eventType(tt.condition); got != tt.want {
				t.Errorf("eventType = %s, want %s", got, tt.want)
			}
		})
	}
}
