// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestOnlyChangesInARowWait(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
	p := newPace(clock, 500*time.Millisecond)
	svc, other := types.NamespacedName{Name: "web"}, types.NamespacedName{Name: "db"}
	want := func(step string, of types.NamespacedName, delay time.Duration) {
		t.Helper()
		if got := p.delay(of); got != delay {
			t.Errorf("%s: a change waits %s, want %s", step, got, delay)
		}
	}
	want("the first", svc, 0)
	p.begin(svc)
	want("right after", svc, 500*time.Millisecond)
	want("of another Service", other, 0)
	clock.SetTime(clock.Now().Add(200 * time.Millisecond))
	want("a little later", svc, 300*time.Millisecond)
	clock.SetTime(clock.Now().Add(time.Second))
	want("after the period", svc, 0)
	p.begin(svc)
	p.forget(svc)
	want("forgotten", svc, 0)
}
