// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// pace spaces the writes of a Service's slices, which every node may watch: a
// change that comes alone is published at once, and those that follow within a
// period together at its end.
type pace struct {
	clock  clock.PassiveClock
	period time.Duration
	mu     sync.Mutex
	begun  map[types.NamespacedName]time.Time
}

func newPace(c clock.PassiveClock, period time.Duration) *pace {
	return &pace{clock: c, period: period, begun: map[types.NamespacedName]time.Time{}}
}

// delay is how long a change of the Service's endpoints has to wait.
func (p *pace) delay(svc types.NamespacedName) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	begun, ok := p.begun[svc]
	if !ok {
		return 0
	}
	return max(0, p.period-p.clock.Since(begun))
}

// begin notes that the Service is published now.
func (p *pace) begin(svc types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun[svc] = p.clock.Now()
}

func (p *pace) forget(svc types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.begun, svc)
}
