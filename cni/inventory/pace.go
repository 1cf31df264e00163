// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"time"

	"k8s.io/utils/clock"
)

// pace spaces out writes: at once after a pause, then at most one in
// publishEvery, and further apart while they fail.
type pace struct {
	clock    clock.Clock
	earliest time.Time
	backoff  time.Duration
	timer    clock.Timer
}

func newPace(c clock.Clock) *pace { return &pace{clock: c} }

// mayWrite says whether the time has come; if not, due will signal when.
func (p *pace) mayWrite() bool {
	wait := p.earliest.Sub(p.clock.Now())
	if wait <= 0 {
		p.stop()
		return true
	}
	if p.timer == nil {
		p.timer = p.clock.NewTimer(wait)
	}
	return false
}

// due signals when a write that mayWrite put off may be made; it is nil while
// none was put off.
func (p *pace) due() <-chan time.Time {
	if p.timer == nil {
		return nil
	}
	return p.timer.C()
}

func (p *pace) wrote() {
	p.backoff = 0
	p.earliest = p.clock.Now().Add(publishEvery)
}

// failed puts the next try off and says for how long.
func (p *pace) failed() time.Duration {
	p.backoff = min(max(2*p.backoff, retryFirst), retryLast)
	p.earliest = p.clock.Now().Add(p.backoff)
	p.stop()
	p.timer = p.clock.NewTimer(p.backoff)
	return p.backoff
}

func (p *pace) stop() {
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}
