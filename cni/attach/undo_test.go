// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// withDelegates serves a world with a delegated Network that has our addresses.
func withDelegates(t *testing.T) *world {
	t.Helper()
	return serving(t, func(w *world) {
		d := newDelegateWorld(t, plainConf)
		w.networks, w.deps.Delegates, w.deps.Foreign = d.networks, d.deps.Delegates, w.links
	})
}

func (w *world) leasedTo(id string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for key := range maps.Keys(w.leases) {
		if name, of := strings.CutPrefix(key, id+"/"); of {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// TestAddressesOfDelegatesOutliveAFailedAdd: the delegate's interface may be there
// until somebody says that it is not.
func TestAddressesOfDelegatesOutliveAFailedAdd(t *testing.T) {
	const networks = "routed@net1,data@net3"
	results := []wire.DelegateResult{{IfName: "net1", Result: []byte(routedResult)}}
	for name, test := range map[string]struct {
		// fail is how far the ADD comes; it leaves the connection open.
		fail func(t *testing.T, w *world, client *wire.Client)
		// record says that DEL finds one.
		record bool
	}{
		"the binary is killed between the rounds": {fail: func(*testing.T, *world, *wire.Client) {}},
		"the agent cannot take the result": {fail: func(t *testing.T, _ *world, client *wire.Client) {
			_, err := client.Call(t.Context(), wire.Request{Op: wire.OpCommit, Sandbox: sandboxOf("c1")})
			wantCode(t, err, wire.CodeInternal, "has no result of plugin")
		}},
		"the agent cannot design": {fail: func(t *testing.T, w *world, client *wire.Client) {
			w.links.FailOn = failing("bridge eth1")
			_, err := client.Call(t.Context(), wire.Request{Op: wire.OpCommit, Sandbox: sandboxOf("c1"), Delegates: results})
			wantCode(t, err, wire.CodeInternal, "injected")
		}},
		"the agent cannot make its part": {record: true, fail: func(t *testing.T, w *world, client *wire.Client) {
			w.links.FailOn = failing("add net3")
			_, err := client.Call(t.Context(), wire.Request{Op: wire.OpCommit, Sandbox: sandboxOf("c1"), Delegates: results})
			wantCode(t, err, wire.CodeInternal, "injected")
		}},
	} {
		for ending, end := range map[string]func(t *testing.T, w *world, client *wire.Client){
			"the binary has undone it": func(t *testing.T, _ *world, client *wire.Client) {
				if _, err := client.Call(t.Context(), wire.Request{Op: wire.OpAbort, Sandbox: sandboxOf("c1")}); err != nil {
					t.Error(err)
				}
			},
			"the runtime calls DEL": func(t *testing.T, w *world, client *wire.Client) {
				_ = client.Close()
				eventually(t, "the agent has given back what it could", func() bool { return cmp.Equal([]string{"net1"}, w.leasedTo("c1")) })
				if left := w.links.String(); strings.Contains(left, "/ns/c1: net3") {
					t.Errorf("left in the pod: %s", left)
				}
				time.Sleep(10 * time.Millisecond)
				if got := w.leasedTo("c1"); !cmp.Equal([]string{"net1"}, got) {
					t.Errorf("leases before DEL: %v", got)
				}
				if _, ok := w.sandbox("c1"); ok != test.record {
					t.Errorf("a record is there: %v", ok)
				}
				if _, err := w.call(t, wire.Request{Op: wire.OpDel, Sandbox: sandboxOf("c1")}); err != nil {
					t.Error(err)
				}
			},
		} {
			t.Run(name+", "+ending, func(t *testing.T) {
				w := withDelegates(t)
				client := w.dial(t)
				if _, err := client.Call(t.Context(), wire.Request{Op: wire.OpPrepare, Sandbox: sandboxOf("c1"), Networks: networks}); err != nil {
					t.Fatal(err)
				}
				test.fail(t, w, client)
				end(t, w, client)
				if w.leased() > 0 || len(w.files(t)) > 0 {
					t.Errorf("left: %v %v", w.leasedTo("c1"), w.files(t))
				}
			})
		}
	}
}

func wantCode(t *testing.T, err error, code uint, text string) {
	t.Helper()
	var known *wire.Error
	if !errors.As(err, &known) || known.Code != code || !strings.Contains(known.Msg, text) {
		t.Errorf("got %v, want code %d and %q", err, code, text)
	}
}

// failedWithDelegates is a world in which an ADD failed that had delegates.
func failedWithDelegates(t *testing.T) *world {
	t.Helper()
	w := newDelegateWorld(t, plainConf)
	all, _, err := w.prepared(t, "c1", "routed@net1,data@net3")
	if err != nil {
		t.Fatal(err)
	}
	if err := deliver(all, []wire.DelegateResult{{IfName: "net1", Result: []byte(routedResult)}}); err != nil {
		t.Fatal(err)
	}
	w.links.FailOn = failing("add net3")
	sandbox := sandboxOf("c1")
	if _, _, err := w.commit(t.Context(), &sandbox, all, nil); err == nil {
		t.Fatal("the ADD did not fail")
	}
	w.links.FailOn = nil
	return w
}

func TestWhatDelegatesMayHaveLeftIsKeptOverARestart(t *testing.T) {
	w := failedWithDelegates(t)
	w.open(t, w.config.StateDir)
	if err := w.ReplaySpool(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.restore(t.Context())
	if got := w.leasedTo("c1"); !cmp.Equal([]string{"net1"}, got) || len(w.reported) > 0 {
		t.Errorf("leases %v, reported %v", got, w.reported)
	}
	_, _, err := w.prepared(t, "c1", "data@net3")
	wantCode(t, err, wire.CodeInvalidEnvironment, "DEL must come before another ADD")
	w.gone["/ns/c1"] = true
	w.collectOnce(t.Context(), w.collectOnce(t.Context(), nil))
	if w.leased() > 0 || len(w.files(t)) > 0 {
		t.Errorf("left: %v %v", w.leases, w.files(t))
	}
}

// An agent that dies during Commit does not know how far the binary comes.
func TestAnAgentThatDiesInCommitKeepsTheAddressesOfDelegates(t *testing.T) {
	w := newDelegateWorld(t, plainConf)
	all, _, err := w.prepared(t, "c1", "routed@net1,data@net3")
	if err != nil {
		t.Fatal(err)
	}
	if err := deliver(all, []wire.DelegateResult{{IfName: "net1", Result: []byte(routedResult)}}); err != nil {
		t.Fatal(err)
	}
	sandbox := sandboxOf("c1")
	if !w.crashing(2, func() { _, _, _ = w.commit(t.Context(), &sandbox, all, nil) }) { // after add
		t.Fatal("it did not die")
	}
	w.open(t, w.config.StateDir)
	if err := w.ReplaySpool(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.leasedTo("c1"); !cmp.Equal([]string{"net1"}, got) || strings.Contains(w.links.String(), "net3") {
		t.Errorf("leases %v, links\n%s", got, w.links)
	}
	if err := w.del(t.Context(), &sandbox); err != nil || w.leased() > 0 {
		t.Errorf("%v, leases %v", err, w.leases)
	}
}

// TestAddressOfALinkThatCouldNotBeUnmade: neither ADD nor its clean-up works, so
// that the link may be there.
func TestAddressOfALinkThatCouldNotBeUnmade(t *testing.T) {
	breaks := func(operation string) error {
		if operation == "add net2" || operation == "unmake net1" || operation == "delete net1" {
			return errors.New("injected")
		}
		return nil
	}
	t.Run("ADD", func(t *testing.T) {
		w := newWorld(t)
		w.links.FailOn = breaks
		if err := w.add(t.Context(), "c1", "data@net1,data@net2"); err == nil {
			t.Fatal("it succeeded")
		}
		if !strings.Contains(w.links.String(), "/ns/c1: net1") || !slices.Contains(w.leasedTo("c1"), "net1") {
			t.Errorf("leases %v, links\n%s", w.leases, w.links)
		}
		w.links.FailOn = nil
		sandbox := sandboxOf("c1")
		if err := w.del(t.Context(), &sandbox); err != nil || w.leased() > 0 || strings.Contains(w.links.String(), "/ns/c1") {
			t.Errorf("after DEL (%v): %v\n%s", err, w.leases, w.links)
		}
	})
	t.Run("what is the pod's own stays", func(t *testing.T) {
		w := newWorld(t)
		if err := w.links.Add(t.Context(), "/ns/c1", link.Interface{Name: "net2", Kind: link.KindMacvlan}); err != nil {
			t.Fatal(err)
		}
		if err := w.add(t.Context(), "c1", "data@net1,data@net2"); err == nil || !strings.Contains(err.Error(), "has an interface net2 already") {
			t.Fatalf("got %v", err)
		}
		if w.leased() > 0 || !strings.Contains(w.links.String(), "/ns/c1: net2") || strings.Contains(w.links.String(), "/ns/c1: net1") {
			t.Errorf("leases %v, links\n%s", w.leases, w.links)
		}
	})
}

func TestGCKnowsWhatIsYoungerThanTheList(t *testing.T) {
	w := newWorld(t)
	clock := clocktesting.NewFakeClock(time.Now())
	w.deps.Clock = clock
	for _, id := range []string{"lost", "kept"} {
		if err := w.add(t.Context(), id, "data"); err != nil {
			t.Fatal(err)
		}
	}
	clock.Step(gcGrace)
	if err := w.add(t.Context(), "young", "data"); err != nil {
		t.Fatal(err)
	}
	unlock, err := w.busy.lock(t.Context(), "lost") // somebody works on it
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- w.gc(t.Context(), []string{"kept"}) }()
	select {
	case err := <-done:
		t.Fatalf("GC did not wait for the sandbox: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"kept.json", "young.json"}, w.files(t)); diff != "" {
		t.Error(diff)
	}
	clock.Step(gcGrace)
	if err := w.gc(t.Context(), []string{"kept"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"kept.json"}, w.files(t)); diff != "" || w.leased() != 1 {
		t.Error(diff, w.leases)
	}
}

// What an ADD that failed has left goes with GC, but not what is under way.
func TestGCOfHalfAnAdd(t *testing.T) {
	w := failedWithDelegates(t)
	w.deps.Clock = clocktesting.NewFakeClock(time.Now().Add(gcGrace))
	half := sandboxOf("half")
	if err := w.remember(&Sandbox{Sandbox: half, State: StateAttaching}); err != nil {
		t.Fatal(err)
	}
	if err := w.gc(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"half.json"}, w.files(t)); diff != "" || w.leased() > 0 {
		t.Error(diff, w.leases)
	}
}
