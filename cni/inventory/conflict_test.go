// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestConflictsArePublished(t *testing.T) {
	b := newBench(t)
	b.step(b.ctx, true, b.pace)
	consistent := func() metav1.Condition {
		t.Helper()
		c := meta.FindStatusCondition(b.shown(t).Status.Conditions, v1alpha1.ConditionBlocksConsistent)
		if c == nil {
			t.Fatal("there is no condition BlocksConsistent")
		}
		return *c
	}
	if c := consistent(); c.Status != metav1.ConditionTrue || c.Reason != v1alpha1.ReasonNoBlockConflict {
		t.Errorf("condition %v without conflicts", c)
	}
	b.held.conflicts = []v1alpha1.BlockConflict{{
		Block: "data.10.20.0.16-29", OtherNode: "worker2", Addresses: 4, Pods: []string{"default/a", "default/b"},
		Since: metav1.NewTime(time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)),
	}}
	b.clock.Step(publishEvery)
	b.step(b.ctx, false, b.pace)
	b.want(t, "conflict data.10.20.0.16-29 worker2 4 [default/a default/b]", "InventoryReady True InventoryRead", "BlocksConsistent False BlockConflict")
	want := "delete the pods that have addresses in these blocks, here or, if they are younger, on the other node: " +
		"IPBlock data.10.20.0.16-29 is node worker2's, too; 4 addresses of it are in use here since 2026-09-01T12:00:00Z by pods default/a, default/b"
	if c := consistent(); c.Message != want {
		t.Errorf("message %q, want %q", c.Message, want)
	}
	before := b.writes
	b.clock.Step(time.Minute)
	b.step(b.ctx, false, b.pace)
	if b.writes != before {
		t.Errorf("%d writes though nothing changed", b.writes-before)
	}
	b.held.conflicts = nil
	b.step(b.ctx, false, b.pace)
	if c := consistent(); c.Status != metav1.ConditionTrue {
		t.Errorf("condition %v after the conflict", c)
	}
}
