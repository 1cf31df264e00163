// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/netplane/netplane/api/v1alpha1"
)

// pace remembers when an object's counters were written last. It is only in
// memory: after a restart the first change is written at once.
type pace struct {
	clock    clock.PassiveClock
	interval time.Duration

	mu      sync.Mutex
	written map[types.UID]time.Time
}

func newPace(opts Options) *pace {
	return &pace{clock: opts.Clock, interval: opts.CounterInterval, written: map[types.UID]time.Time{}}
}

// wait is how long counters that differ must wait; zero means write now.
func (p *pace) wait(uid types.UID) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, known := p.written[uid]
	if !known {
		return 0
	}
	return max(0, p.interval-p.clock.Since(last))
}

func (p *pace) wrote(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock.Now()
	p.written[uid] = now
	// Objects that are gone leave entries behind, which are worth nothing
	// once the interval has passed: then they allow what no entry allows.
	for other, at := range p.written {
		if now.Sub(at) > p.interval {
			delete(p.written, other)
		}
	}
}

// transition tells whether want must be written at once: conditions, what
// follows from the spec, and the first or the last node.
func transition(want, have *v1alpha1.NetworkStatus) bool {
	return want.ObservedGeneration != have.ObservedGeneration ||
		want.Addresses.Capacity != have.Addresses.Capacity ||
		firstOrLast(want.Nodes, have.Nodes) ||
		!equality.Semantic.DeepEqual(pressing(want.Conditions, have.Conditions))
}

func firstOrLast(want, have v1alpha1.NodeCounts) bool {
	return (want.Ready == 0) != (have.Ready == 0) || (want.Total == 0) != (have.Total == 0)
}

// merge gives the conditions in want their transition times from those in
// have, and keeps the conditions that others own. It returns a new list.
func merge(have, want []metav1.Condition, owned []string, now time.Time) []metav1.Condition {
	out := make([]metav1.Condition, 0, len(have)+len(want))
	for i := range have {
		if !slices.Contains(owned, have[i].Type) || meta.FindStatusCondition(want, have[i].Type) != nil {
			out = append(out, have[i])
		}
	}
	for _, condition := range want {
		if old := meta.FindStatusCondition(have, condition.Type); old == nil || old.Status != condition.Status {
			condition.LastTransitionTime = metav1.NewTime(now)
		} else {
			condition.LastTransitionTime = old.LastTransitionTime
		}
		meta.SetStatusCondition(&out, condition)
	}
	return out
}

// changed lists the conditions whose status or reason differs: those are worth
// an event.
func changed(have, want []metav1.Condition) []metav1.Condition {
	var out []metav1.Condition
	for _, condition := range want {
		old := meta.FindStatusCondition(have, condition.Type)
		if old == nil && condition.Reason == v1alpha1.ReasonAddressesLeft {
			continue // that a new Network has addresses is no news
		}
		if old == nil || old.Status != condition.Status || old.Reason != condition.Reason {
			out = append(out, condition)
		}
	}
	return out
}

// eventType: True is what one wants of Ready and does not want of Tight. That
// addresses run low is a warning before it is a fault.
func eventType(condition metav1.Condition) string {
	if condition.Reason == v1alpha1.ReasonAddressesRunningLow {
		return corev1.EventTypeWarning
	}
	good := metav1.ConditionTrue
	if condition.Type == v1alpha1.ConditionTight {
		good = metav1.ConditionFalse
	}
	if condition.Status == good || condition.Reason == v1alpha1.ReasonTerminating {
		return corev1.EventTypeNormal
	}
	return corev1.EventTypeWarning
}
