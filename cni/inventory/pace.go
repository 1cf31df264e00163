// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"time"

	"k8s.io/utils/clock"
)

// pace spaces out writes: at once after a pause, on the whole one in
// publishEvery, and further apart while they fail. A few may follow each other
// at once: until others know that a NIC is down or a Network refused, pods are
// placed here that cannot run.
type pace struct {
	clock clock.Clock
	// paidUntil runs ahead of the clock by publishEvery for every write.
	paidUntil time.Time
	retryAt   time.Time
	backoff   time.Duration
	timer     clock.Timer
}

// publishBurst is how many writes may follow each other at once.
const publishBurst = 3

func newPace(c clock.Clock) *pace { return &pace{clock: c} }

// mayWrite says whether the time has come; if not, due will signal when.
func (p *pace) mayWrite() bool {
	earliest := p.paidUntil.Add(-(publishBurst - 1) * publishEvery)
	if earliest.Before(p.retryAt) {
		earliest = p.retryAt
	}
	wait := earliest.Sub(p.clock.Now())
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
	p.backoff, p.retryAt = 0, time.Time{}
	if now := p.clock.Now(); p.paidUntil.Before(now) {
		p.paidUntil = now
	}
	p.paidUntil = p.paidUntil.Add(publishEvery)
}

// failed puts the next try off and says for how long.
func (p *pace) failed() time.Duration {
	p.backoff = min(max(2*p.backoff, retryFirst), retryLast)
	p.retryAt = p.clock.Now().Add(p.backoff)
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
