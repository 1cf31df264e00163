// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// installed lists the node's CNI configurations.
func (w *world) installed() []string {
	w.Helper()
	entries, err := os.ReadDir(w.conf)
	w.must(err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// stopAgent ends the agent as kubelet does.
func (w *world) stopAgent() {
	w.Helper()
	w.must(w.process.Process.Signal(syscall.SIGTERM))
	if err := <-w.ended; err != nil {
		w.Errorf("the agent ended with %v", err)
	}
}

// TestUninstall: an agent that is replaced leaves the configuration, one that
// uninstalls takes it away, and neither cuts a pod off.
func TestUninstall(t *testing.T) {
	w := newWorld(t)
	w.startAgent()
	ours := []string{"00-netplane.conflist", "10-default.conflist"}
	living := w.newSandbox("living", "management@eth0")
	result, err := w.add(living)
	w.must(err)
	w.awaitStatus(living, []string{result.IPs[0].Address.IP.String(), result.IPs[1].Address.IP.String()})
	had := w.interfaces(living)
	w.stopAgent()
	if diff := cmp.Diff(ours, w.installed()); diff != "" {
		t.Errorf("after the agent's end: %s", diff)
	}

	late := w.newSandbox("late", "management@eth0")
	w.launchAgent("--uninstall")
	w.await("a pod that was placed before to get its networks", func() error {
		if diff := cmp.Diff(ours, w.installed()); diff != "" {
			t.Fatalf("the configuration went before: %s", diff)
		}
		_, err := w.add(late)
		return err
	})
	w.awaitReady()
	if diff := cmp.Diff([]string{"10-default.conflist"}, w.installed()); diff != "" {
		t.Errorf("after uninstalling: %s", diff)
	}
	if _, err := os.Stat(filepath.Join(w.bin, "netplane")); err != nil {
		t.Errorf("runtimes may need the binary: %v", err)
	}
	if diff := cmp.Diff(had, w.interfaces(living)); diff != "" {
		t.Errorf("a living pod's interfaces: %s", diff)
	}
	plain, err := w.add(w.newSandbox("plain", ""))
	w.must(err)
	if got := plain.IPs[0].Address.String(); got != "10.244.1.9/24" {
		t.Errorf("a new pod has %s, want the default network's", got)
	}

	// Their DELs: of a runtime that keeps what it called the ADD with.
	for _, s := range []*sandbox{living, late} {
		w.must(w.del(s))
		if left := w.interfaces(s); left != "" {
			t.Errorf("left in pod %s: %q", s.pod.Name, left)
		}
	}
	records, err := os.ReadDir(filepath.Join(w.state, "sandboxes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(records) > 0 {
		t.Errorf("records left: %v, %v", records, err)
	}
	w.stopAgent()
	if !strings.Contains(w.log.String(), "Gave the node its own CNI configuration back") {
		t.Error("the log does not say that the node has its configuration back")
	}

	w.startAgent() // installed anew
	if diff := cmp.Diff(ours, w.installed()); diff != "" {
		t.Errorf("installed anew: %s", diff)
	}
}
