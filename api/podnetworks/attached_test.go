// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package podnetworks

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestUsesOfRequests(t *testing.T) {
	requests, err := Parse(`[{name: data}, {name: data, sticky: true}, {name: backup, ips: [10.1.0.1]}, {name: data, ifname: eth1}]`)
	if err != nil {
		t.Fatal(err)
	}
	want := []Use{{Network: "backup", Fixed: 1}, {Network: "data", Addresses: 2, Fixed: 1}}
	if diff := cmp.Diff(want, Uses(requests)); diff != "" {
		t.Error(diff)
	}
}

func TestAttachedIsReadAsItWasWritten(t *testing.T) {
	for text, want := range map[string][]Use{
		"":                    nil,
		"data=1":              {{"data", 1, 0}},
		"backup=0+1,data=2+3": {{"backup", 0, 1}, {"data", 2, 3}},
		"data=64+64":          {{"data", 64, 64}},
	} {
		got, err := ParseAttached(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
		if again := FormatAttached(got); again != text {
			t.Errorf("%q was written as %q", text, again)
		}
	}
	for _, text := range []string{"data", "=1", "data=", "data=-1", "data=65", "data=1+", "data=1,", "Data=1", "data=1,backup=1", "data=1,data=1", "data=x"} {
		if got, err := ParseAttached(text); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

// Whatever is asked for and whatever is there, neither counts for less.
func TestTakenIsTheLargerOfEach(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	some := func() []Use {
		var out []Use
		for _, name := range []string{"a", "b", "c", "d"} {
			if rng.IntN(2) == 0 {
				out = append(out, Use{name, rng.IntN(4), rng.IntN(4)})
			}
		}
		return out
	}
	of := func(uses []Use, name string) Use {
		if at := slices.IndexFunc(uses, func(u Use) bool { return u.Network == name }); at >= 0 {
			return uses[at]
		}
		return Use{Network: name}
	}
	for range 2000 {
		asked, attached := some(), some()
		got := Taken(asked, attached)
		if !slices.IsSortedFunc(got, compareUses) {
			t.Fatalf("%v is out of order", got)
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			a, b := of(asked, name), of(attached, name)
			want := Use{name, max(a.Addresses, b.Addresses), max(a.Fixed, b.Fixed)}
			if diff := cmp.Diff(want, of(got, name)); diff != "" {
				t.Fatalf("%v and %v: %s", asked, attached, diff)
			}
		}
		if diff := cmp.Diff(asked, Taken(asked, asked), cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	}
}
