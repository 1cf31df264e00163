// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

func TestInterfacesAreAnnouncedWhenTheRuntimeHasItsAnswer(t *testing.T) {
	w := serving(t)
	client := w.dial(t)
	if _, err := client.Call(t.Context(), wire.Request{Op: wire.OpPrepare, Sandbox: sandboxOf("c1"), Networks: both}); err != nil {
		t.Fatal(err)
	}
	if early := w.links.Announced(); len(early) > 0 {
		t.Errorf("announced before they were made: %v", early)
	}
	if _, err := client.Call(t.Context(), wire.Request{Op: wire.OpCommit, Sandbox: sandboxOf("c1")}); err != nil {
		t.Fatal(err)
	}
	_ = client.Close() // the caller's end does not end it
	want := []string{"/ns/c1 eth0", "/ns/c1 net1"}
	eventually(t, "all are announced", func() bool { return cmp.Equal(want, w.links.Announced()) })
}

// What fails for one pod, and the end of the agent, keep no other from being announced.
func TestWhatIsDueIsAnnouncedAtTheEnd(t *testing.T) {
	w := newWorld(t)
	w.links.FailOn = failing("announce net1")
	for netns, iface := range map[string]link.Interface{
		"/ns/c1": {Name: "net1"}, "/ns/c2": {Name: "net2"}, "/ns/c3": {Name: "net3", NIC: &link.NIC{}},
	} {
		w.announcer.add(netns, iface)
	}
	w.announcer.add("/ns/c4") // has none
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.announceAll(ctx)
	if diff := cmp.Diff([]string{"/ns/c2 net2", "/ns/c3 net3"}, slices.Sorted(slices.Values(w.links.Announced()))); diff != "" {
		t.Error(diff)
	}
}

// An agent that was killed may have had announcements due.
func TestWhatWasMadeBeforeAnAgentBeganIsAnnouncedIfItIsNew(t *testing.T) {
	w := newWorld(t)
	now := w.deps.Clock.Now()
	for id, s := range map[string]Sandbox{
		"new":       {State: StateAttached, Since: now.Add(-announceAgain + time.Second)},
		"old":       {State: StateAttached, Since: now.Add(-announceAgain)},
		"half done": {State: StateAttaching, Since: now},
		"bare":      {State: StateAttached, Since: now},
	} {
		s.Sandbox = wire.Sandbox{ContainerID: id, NetNS: "/ns/" + id}
		if id != "bare" {
			s.Interfaces = []link.Interface{{Name: "net1"}}
		}
		if err := w.remember(&s); err != nil {
			t.Fatal(err)
		}
	}
	w.restore(t.Context())
	due := w.announcer.take()
	if len(due) != 1 || due[0].netns != "/ns/new" || len(due[0].interfaces) != 1 {
		t.Errorf("got %v", due)
	}
}
