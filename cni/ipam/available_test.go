// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"strings"
	"testing"
)

// Available says what Reserve would, at once and without a trace.
func TestAvailable(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29") // seven addresses for pods
	f.mustReserve(fixedAsk("db-0", "data", "10.20.0.60"))
	before := f.Leases()
	var all []Ask
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		all = append(all, ask("p", "data", name))
	}
	for range 3 {
		if err := f.Available(all); err != nil {
			t.Error(err)
		}
	}
	if err := f.Available([]Ask{ask("p", "elsewhere")}); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("without a block: %v", err)
	}
	var inUse *FixedInUseError
	if err := f.Available([]Ask{fixedAsk("db-1", "data", "10.20.0.60")}); !errors.As(err, &inUse) {
		t.Errorf("an address in use: %v", err)
	}
	expectEqual(t, "leases", before, f.Leases())
	f.mustReserve(all...)
	if err := f.Available([]Ask{ask("q", "data")}); err == nil {
		t.Error("there is an address beside the last one")
	}
}
