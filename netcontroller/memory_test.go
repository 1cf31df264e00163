// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime/debug"
	"testing"
)

func TestGarbagePercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 40, 4 << 20: 40, 70 << 20: 40, 140 << 20: 20, 1 << 30: 15} {
		if got := garbagePercent(live); got != want {
			t.Errorf("beside %d MiB: %d %%, want %d", live>>20, got, want)
		}
	}
}

func TestTheEnvironmentsLimitOfGarbageStays(t *testing.T) {
	before := debug.SetGCPercent(77)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	t.Setenv("GOGC", "77")
	limitGarbage()
	if got := debug.SetGCPercent(77); got != 77 {
		t.Errorf("it is %d", got)
	}
	t.Setenv("GOGC", "")
	limitGarbage()
	if got := debug.SetGCPercent(77); got < leastPercent || got > mostPercent {
		t.Errorf("without it: %d", got)
	}
}
