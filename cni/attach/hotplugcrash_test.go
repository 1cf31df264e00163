// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/podnetworks"
)

// errCrash is what a crash is told from other panics by.
var errCrash = errors.New("crash")

// crashing runs do and ends it at the step that at says; it tells whether it came so far.
func (w *world) crashing(at int, do func()) (crashed bool) {
	steps := 0
	w.step = func(string) {
		if steps++; steps == at {
			w.step = nil
			panic(errCrash)
		}
	}
	defer func() {
		w.step = nil
		if what := recover(); what != nil {
			if err, ok := what.(error); !ok || !errors.Is(err, errCrash) {
				panic(what)
			}
			crashed = true
		}
	}()
	do()
	return false
}

// An agent that dies at any step of a hot plug leaves nothing behind, and the
// next one comes to the same end.
func TestACrashAtAnyStepOfAHotPlugLeavesNothing(t *testing.T) {
	crashes := 0
	for _, change := range [][2]string{{"data@eth1", "data@eth1,management@eth2"}, {"data@eth1,management@eth2", "data@eth1"}, {"data@eth1", "management@eth1"}} {
		for at := 1; ; at++ {
			w := newWorld(t)
			if err := w.add(t.Context(), "c1", change[0]); err != nil {
				t.Fatal(err)
			}
			if !w.crashing(at, func() { w.ask(t, "c1", change[1]) }) {
				break
			}
			crashes++
			w.open(t, w.config.StateDir)
			if err := w.ReplaySpool(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.interfaces(t, "c1") // record, links and leases agree
			if !w.ask(t, "c1", change[1]) {
				t.Errorf("%v, step %d: not done", change, at)
			}
			want := strings.Fields(strings.NewReplacer("data@eth1", "eth1=data", "management@eth2", "eth2=management", "management@eth1", "eth1=management", ",", " ").Replace(change[1]))
			for i := range want {
				want[i] = strings.Replace(want[i], "=", " ", 1)
			}
			if diff := cmp.Diff(want, w.interfaces(t, "c1")); diff != "" {
				t.Errorf("%v, step %d: %s", change, at, diff)
			}
			sandbox := sandboxOf("c1")
			if err := w.del(t.Context(), &sandbox); err != nil || len(w.leases) > 0 || len(w.files(t)) > 0 || strings.Contains(w.links.String(), "c1") {
				t.Errorf("%v, step %d: after DEL (%v): %v %v\n%s", change, at, err, w.leases, w.files(t), w.links.String())
			}
		}
	}
	if crashes < 12 {
		t.Errorf("only %d crashes: the test does not see the steps", crashes)
	}
}

// Whatever is asked for in turn, and wherever links fail and the agent dies, the
// pod ends with what it asks for or is told why not, and no address is left.
func TestAnySequenceOfAnnotations(t *testing.T) {
	texts := []string{"", "data@eth1", "data@eth1,management@eth2", "management@eth1,data@eth2", "data,data,data", "full@eth1", "full@eth1,data@eth3",
		"data@", "management@eth0", "[{name: data, ifname: eth1, mac: '0a:00:00:00:00:01'}]", "[{name: data, defaultRoute: true}]", "unknown@eth4"}
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 7))
		w := newWorld(t)
		w.networks["data"].Spec.Gateway = "10.20.0.254"
		if err := w.add(t.Context(), "c1", texts[1+rng.IntN(3)]); err != nil {
			t.Fatal(err)
		}
		for range 12 {
			text := texts[rng.IntN(len(texts))]
			w.events = nil
			switch rng.IntN(3) {
			case 0:
				w.links.FailOn = func(string) error {
					if rng.IntN(3) == 0 {
						return errors.New("injected")
					}
					return nil
				}
				w.ask(t, "c1", text)
				w.links.FailOn = nil
			case 1:
				if w.crashing(1+rng.IntN(12), func() { w.ask(t, "c1", text) }) {
					w.open(t, w.config.StateDir)
					if err := w.ReplaySpool(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			w.ask(t, "c1", text)
			have := w.interfaces(t, "c1")
			told := slices.ContainsFunc(w.events, func(e string) bool { return strings.HasPrefix(e, "refused: ") })
			var asked []podnetworks.Request
			var err error
			if text != "" {
				asked, err = podnetworks.Parse(text)
			}
			record, _ := w.sandbox("c1")
			if exactly := err == nil && settled(planChange(record.Asked, asked)); exactly == (w.plugs.of("c1").refused != "") {
				t.Fatalf("seed %d, %q: has %v, refused %q, told %v", seed, text, have, w.plugs.of("c1").refused, told)
			}
		}
		sandbox := sandboxOf("c1")
		if err := w.del(t.Context(), &sandbox); err != nil || len(w.leases) > 0 || len(w.files(t)) > 0 || strings.Contains(w.links.String(), "c1") {
			t.Fatalf("seed %d: after DEL (%v): %v %v\n%s", seed, err, w.leases, w.files(t), w.links.String())
		}
	}
}
