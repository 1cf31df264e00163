// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// TestStartSweepsTheLinksOfNoSandbox, unless it cannot tell which those are.
func TestStartSweepsTheLinksOfNoSandbox(t *testing.T) {
	orphan := link.Interface{Name: "net1", Kind: link.KindVeth, HostEnd: link.HostEndName("lost", "net1"), Parent: "np-eth1"}
	for name, test := range map[string]struct {
		before func(t *testing.T, w *world)
		swept  bool
	}{
		"as it should be":             {before: func(*testing.T, *world) {}, swept: true},
		"a record cannot be read":     {before: func(t *testing.T, w *world) { spoil(t, w, "broken") }},
		"the agent's state is lost":   {before: func(t *testing.T, w *world) { must(t, os.RemoveAll(string(w.records))) }},
		"the kernel does not let one": {before: func(_ *testing.T, w *world) { w.links.FailOn = failing("sweep") }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			must(t, w.add(t.Context(), "c1", both))
			kept := w.links.String()
			must(t, w.links.Add(t.Context(), "/gone", orphan))
			must(t, w.links.AddPath(t.Context(), link.Path{Device: link.ShimName("lost", "eth9"), Parent: "eth9"}))
			test.before(t, w)
			w.open(t, w.config.StateDir)
			must(t, w.ReplaySpool(t.Context()))
			var left []string
			for line := range strings.Lines(w.links.String()) {
				if strings.HasPrefix(line, "host: np") && !strings.Contains(kept, line) {
					left = append(left, line)
				}
			}
			if len(left) == 0 != test.swept {
				t.Errorf("left: %q", left)
			}
			for line := range strings.Lines(kept) {
				if !strings.Contains(w.links.String(), line) {
					t.Errorf("lost %s", line)
				}
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// spoil has a record that cannot be read.
func spoil(t *testing.T, w *world, id string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(string(w.records), id+recordSuffix), []byte("{"), 0o600))
}

// TestAddressesOfAnUnreadableSandbox: the interfaces that have them cannot be
// removed one by one.
func TestAddressesOfAnUnreadableSandbox(t *testing.T) {
	for _, gone := range []bool{false, true} {
		w := newWorld(t)
		must(t, w.add(t.Context(), "c1", "data"))
		spoil(t, w, "c1")
		w.open(t, w.config.StateDir)
		must(t, w.ReplaySpool(t.Context()))
		if records, _ := w.Unreadable(); records != 1 || !w.blind() {
			t.Errorf("%d unreadable records", records)
		}
		w.gone["/ns/c1"] = gone
		sandbox := sandboxOf("c1")
		must(t, w.del(t.Context(), &sandbox))
		if w.leased() == 0 != gone || w.blind() || len(w.files(t)) > 0 {
			t.Errorf("namespace gone %v: leases %v, files %v", gone, w.leases, w.files(t))
		}
	}
}

// An agent that can find out that such a sandbox is gone does not wait for its DEL.
func TestUnreadableSandboxThatVanishedIsFreed(t *testing.T) {
	w := newWorld(t)
	must(t, w.add(t.Context(), "c1", "data"))
	later := `{"containerID":"c1","netns":"/ns/c1","interfaces":"of a later version"}`
	must(t, os.WriteFile(filepath.Join(string(w.records), "c1"+recordSuffix), []byte(later), 0o600))
	w.open(t, w.config.StateDir)
	must(t, w.ReplaySpool(t.Context()))
	w.collectOnce(t.Context(), w.collectOnce(t.Context(), nil))
	if w.leased() != 1 || !w.blind() {
		t.Errorf("while it lives: leases %v", w.leases)
	}
	w.gone["/ns/c1"] = true
	w.collectOnce(t.Context(), w.collectOnce(t.Context(), nil))
	if w.leased() != 0 || w.blind() || len(w.files(t)) > 0 {
		t.Errorf("left: leases %v, files %v", w.leases, w.files(t))
	}
}

// TestStartPassesOverWhatCannotBeRead: none of it keeps the agent from serving.
func TestStartPassesOverWhatCannotBeRead(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"c1", "c2"} {
		must(t, w.add(t.Context(), id, "data"))
	}
	must(t, w.config.Spool().Put(sandboxOf("c1")))
	must(t, os.Mkdir(filepath.Join(string(w.config.Spool()), "odd.json"), 0o700))
	must(t, os.Mkdir(filepath.Join(string(w.records), "odd.json"), 0o700))
	w.open(t, w.config.StateDir)
	must(t, w.ReplaySpool(t.Context()))
	if diff := cmp.Diff([]string{"c2.json", "odd.json"}, w.files(t)); diff != "" {
		t.Error(diff)
	}
	if records, spooled := w.Unreadable(); records != 1 || spooled != 1 {
		t.Errorf("unreadable: %d records, %d spooled", records, spooled)
	}
}

// The binary looks for the record by name before it spools a DEL.
func TestTheBinaryFindsTheRecordOfASandboxWithoutAnAddress(t *testing.T) {
	w := newDelegateWorld(t, plainConf)
	all, _, err := w.prepared(t, "c1", "overlay")
	must(t, err)
	must(t, deliver(all, []wire.DelegateResult{{IfName: "net1", Result: []byte(strings.ReplaceAll(overlayResult, "net2", "net1"))}}))
	sandbox := sandboxOf("c1")
	_, _, err = w.commit(t.Context(), &sandbox, all, nil)
	must(t, err)
	journal := filepath.Join(w.config.StateDir, "addresses.journal")
	got := []bool{wire.Journaled(journal, "c1"), wire.Journaled(journal, "c2")}
	if !slices.Equal(got, []bool{true, false}) {
		t.Errorf("got %v", got)
	}
}
