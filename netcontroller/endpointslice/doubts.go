// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// doubtPeriod is how long an address is withheld before an event says so: a
// pod's annotation and its node's block come by different watches.
const doubtPeriod = 2 * time.Second

// doubt is one reason to withhold one address of one pod.
type doubt struct {
	pod                   types.UID
	network, address, why string
}

// doubts remembers per Service what is withheld, so that one event tells it.
type doubts struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	// since is when a doubt came up; the zero time once it was told.
	since map[types.NamespacedName]map[doubt]time.Time
}

func newDoubts(c clock.PassiveClock) *doubts {
	return &doubts{clock: c, since: map[types.NamespacedName]map[doubt]time.Time{}}
}

// update replaces what is withheld for a Service. It returns what is to be told
// now, and after what time to look again; zero means never.
func (d *doubts) update(svc types.NamespacedName, now []withheld) (tell []withheld, again time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.since[svc]
	delete(d.since, svc)
	if len(now) == 0 {
		return nil, 0
	}
	next := make(map[doubt]time.Time, len(now))
	for _, w := range now {
		key := doubt{w.pod.UID, w.network, w.address, w.why}
		since, known := before[key]
		if !known {
			since = d.clock.Now()
		}
		if !since.IsZero() {
			if left := doubtPeriod - d.clock.Since(since); left > 0 {
				again = max(again, left)
			} else {
				tell, since = append(tell, w), time.Time{}
			}
		}
		next[key] = since
	}
	d.since[svc] = next
	return tell, again
}
