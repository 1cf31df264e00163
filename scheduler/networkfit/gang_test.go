// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"fmt"
	"testing"
)

// The framework puts the members of a gang into its snapshot one by one, while
// the generation of the NodeInfo stays what it was.
func TestMembersOfAGangAreCountedWithoutANewGeneration(t *testing.T) {
	pl := newPlugin(t, makeNode("n", up("data")), makeNetwork("data"), makeBlock("data", "n", 0))
	info := newNodeInfo("n", pods(5, "data")...)
	var got []bool
	for i := range 4 {
		state, pod := newCycleState(), makePod(fmt.Sprintf("member-%d", i), "data")
		state.group = true
		if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
			t.Fatal(status)
		}
		fits := pl.Filter(t.Context(), state, pod, info).IsSuccess()
		if got = append(got, fits); fits {
			info.pods = append(info.pods, pod)
		}
	}
	if want := "[true true false false]"; fmt.Sprint(got) != want {
		t.Errorf("with two addresses left the members of a gang fit %v, want %s", got, want)
	}
	info.pods = info.pods[:5] // the gang is given up
	state, pod := newCycleState(), makePod("single", "data")
	if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
		t.Fatal(status)
	}
	if status := pl.Filter(t.Context(), state, pod, info); !status.IsSuccess() {
		t.Errorf("what a gang had is remembered after it was given up: %v", status)
	}
}
