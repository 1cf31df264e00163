// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestCollectorFreesWhatIsGoneTwice(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	gone := map[string]bool{}
	var freed []string
	c := &Collector{
		Manager: f.Manager,
		Clock:   f.clock,
		Exists:  func(l Lease) bool { return !gone[l.PodName] },
		Freed:   func(_ context.Context, l Lease) { freed = append(freed, l.PodName) },
	}
	f.mustReserve(ask("a", "data"))
	f.mustReserve(ask("b", "data"))
	f.mustReserve(ask("back", "data"))
	gone["a"], gone["back"] = true, true

	c.look(t.Context())
	expectEqual(t, "freed while young", []string(nil), freed)
	f.clock.Step(DefaultCollectGrace)
	c.look(t.Context())
	expectEqual(t, "freed at first sight", []string(nil), freed)
	gone["back"] = false
	c.look(t.Context())
	expectEqual(t, "freed at second sight", []string{"a"}, freed)
	gone["back"] = true
	c.look(t.Context())
	expectEqual(t, "freed after it was seen in between", []string{"a"}, freed)
	expectEqual(t, "addresses in use", []string{"10.20.0.10", "10.20.0.11"}, addresses(f.Leases()))
	expectEqual(t, "lines of the journal: two leases and what cools down", 3, lineCount(t, f.path))
	expectEqual(t, "garbage counted", map[string]int64{"data": 1}, f.garbage.all())
}

func TestCollectorSparesALaterLeaseOfTheSameInterface(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	c := &Collector{Manager: f.Manager, Clock: f.clock, Exists: func(Lease) bool { return false }}
	f.mustReserve(ask("a", "data"))
	f.clock.Step(time.Hour)
	c.look(t.Context())
	f.mustRelease("sandbox-a")
	f.mustReserve(ask("a", "data"))
	f.clock.Step(time.Hour)
	c.look(t.Context())
	expectEqual(t, "addresses in use", []string{"10.20.0.10"}, addresses(f.Leases()))
}

func TestCollectorLooksByTheClock(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"))
	freed := make(chan string, 1)
	c := &Collector{Manager: f.Manager, Clock: f.clock, Exists: func(Lease) bool { return false },
		Freed: func(_ context.Context, l Lease) { freed <- l.PodName }}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Start(ctx) }()
	for {
		select {
		case pod := <-freed:
			cancel()
			expectEqual(t, "freed", "a", pod)
			expectEqual(t, "Start's result", error(nil), <-ended)
			return
		default:
			f.clock.Step(DefaultCollectEvery)
			time.Sleep(time.Millisecond)
		}
	}
}

func TestNamespaceExists(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "cni-1")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		netns string
		want  bool
	}{
		{name: "the path is there", netns: there, want: true},
		{name: "the path is gone", netns: filepath.Join(dir, "cni-2"), want: false},
		{name: "the folder is not mounted into the agent's namespace", netns: filepath.Join(dir, "missing", "cni-1"), want: true},
		{name: "something else is wrong with the path", netns: filepath.Join(there, "below-a-file"), want: true},
		{name: "no path, so that no interface was ever made", netns: "", want: false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			expectEqual(t, "exists", test.want, NamespaceExists(Lease{Owner: Owner{NetNS: test.netns}}))
		})
	}
}
