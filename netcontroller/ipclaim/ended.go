// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipclaim

import (
	"maps"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// endedFor is how long it is remembered that a pod had ended before it went:
// its claims are decided on long before.
const endedFor = 10 * time.Minute

// ended remembers the pods of which kubelet said that they had ended, and that
// are gone since. It is safe for concurrent use. What is forgotten costs a
// grace.
type ended struct {
	clock clock.PassiveClock

	mu    sync.Mutex
	at    map[types.UID]time.Time
	swept time.Time
}

func newEnded(c clock.PassiveClock) *ended {
	return &ended{clock: c, at: map[types.UID]time.Time{}, swept: c.Now()}
}

func (e *ended) add(uid types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.clock.Now()
	e.at[uid] = now
	if now.Sub(e.swept) > endedFor {
		e.swept = now
		maps.DeleteFunc(e.at, func(_ types.UID, at time.Time) bool { return now.Sub(at) > endedFor })
	}
}

func (e *ended) has(uid types.UID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.at[uid]
	return ok
}
