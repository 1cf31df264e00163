// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How much garbage may be beside what lives, before it is collected. Nearly all
// of the memory are caches that stay: Go's default, as much again, would double
// it. In a large cluster a small part of them is room enough for the work.
const (
	mostPercent  = 40
	leastPercent = 15 // less would have the collector run for most of the time
	mostGarbage  = 28 << 20
)

// What a burst of changes left is given back so often, if there is so much
// memory that it is worth a collection, which costs about a second of CPU for
// each GiB.
const (
	giveBackPeriod = 30 * time.Second
	giveBackFrom   = 128 << 20 // bytes
)

// garbagePercent is the room for garbage beside so many bytes that live.
func garbagePercent(live uint64) int {
	if live == 0 {
		return mostPercent
	}
	return int(max(leastPercent, min(mostPercent, mostGarbage*100/live))) //nolint:gosec // at most 40
}

// limitGarbage sets what the environment does not, for the bytes that live now.
func limitGarbage() {
	if os.Getenv("GOGC") == "" {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		debug.SetGCPercent(garbagePercent(live[0].Value.Uint64()))
	}
}

// giveBack runs with or without the lease: a replica that waits has the same
// caches.
type giveBack struct{}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (giveBack) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable.
func (giveBack) Start(ctx context.Context) error {
	ticks := time.NewTicker(giveBackPeriod)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
			limitGarbage()
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			if now.Sys-now.HeapReleased >= giveBackFrom {
				debug.FreeOSMemory()
			}
		}
	}
}
