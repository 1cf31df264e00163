// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

// gcPercent is below Go's default of 100: nearly all of the memory are caches
// that stay, and as much garbage again would double it.
const gcPercent = 40

// What a burst of changes left is given back so often, if there is so much
// memory that it is worth a collection, which costs about a second of CPU for
// each GiB.
const (
	giveBackPeriod = 30 * time.Second
	giveBackFrom   = 128 << 20 // bytes
)

// limitGarbage sets what the environment does not.
func limitGarbage() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
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
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			if now.Sys-now.HeapReleased >= giveBackFrom {
				debug.FreeOSMemory()
			}
		}
	}
}
