// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOnlyUnchangedPartsOfTheProgramAreGivenBack(t *testing.T) {
	mapping := func(header string, anonymous int) string {
		return fmt.Sprintf("%s\nSize:  4 kB\nRss:  4 kB\nAnonymous:  %d kB\nVmFlags: rd ex mr\n", header, anonymous)
	}
	smaps := mapping("00400000-01000000 r-xp 00000000 fe:00 12    /agent", 0) +
		mapping("01000000-02000000 r--p 00c00000 fe:00 12    /agent", 0) +
		mapping("02000000-02100000 r--p 01c00000 fe:00 12    /agent", 4) + // relocated
		mapping("02100000-02200000 rw-p 01d00000 fe:00 12    /agent", 0) +
		mapping("7f0000000000-7f0000100000 r-xp 00000000 fe:00 13    /lib/other", 0) +
		mapping("7f0000200000-7f0000300000 r--p 00000000 00:00 0", 0)
	got, err := unwritten(strings.NewReader(smaps), "/agent")
	if err != nil {
		t.Fatal(err)
	}
	want := []span{{0x400000, 0x1000000}, {0x1000000, 0x2000000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(span{})); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
}

// The test binary goes on after it, which is the point.
func TestGivingTheStartBackHarmsNothing(t *testing.T) {
	if err := forgetStart(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Repeat("ab", 2); got != "abab" {
		t.Errorf("got %q", got)
	}
}
