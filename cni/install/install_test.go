// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

type node struct {
	*Installer
	t    *testing.T
	conf string
	bin  string
}

func newNode(t *testing.T) *node {
	t.Helper()
	root := t.TempDir()
	n := &node{t: t, conf: filepath.Join(root, "net.d"), bin: filepath.Join(root, "bin")}
	for _, dir := range []string{n.conf, n.bin} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	source := filepath.Join(root, "netplane")
	if err := os.WriteFile(source, []byte("#!binary"), 0o755); err != nil {
		t.Fatal(err)
	}
	installer, err := New(Config{Source: source, BinDir: n.bin, ConfDir: n.conf, Socket: "/run/netplane/agent.sock", SpoolDir: "/run/netplane/spool", Journal: "/run/netplane/journal"})
	if err != nil {
		t.Fatal(err)
	}
	n.Installer = installer
	return n
}

func (n *node) write(name, content string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.conf, name), []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// installed parses our configuration as a runtime does; nil if there is none.
func (n *node) installed() *confPlugin {
	n.t.Helper()
	file := filepath.Join(n.conf, ConfName)
	if _, err := os.Stat(file); err != nil {
		return nil
	}
	list, err := libcni.NetworkConfFromFile(file)
	if err != nil {
		n.t.Fatalf("a runtime could not read our configuration: %v", err)
	}
	var plugin confPlugin
	if err := json.Unmarshal(list.Plugins[0].Bytes, &plugin); err != nil {
		n.t.Fatal(err)
	}
	return &plugin
}

func (n *node) files() []string {
	n.t.Helper()
	var out []string
	for _, dir := range []string{n.bin, n.conf} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, e.Name())
		}
	}
	return out
}

const (
	bridged = `{"cniVersion":"0.3.1","name":"cluster","plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap","capabilities":{"portMappings":true,"other":false}}]}`
	single  = `{"cniVersion":"0.4.0","name":"plain","type":"ptp","capabilities":{"bandwidth":true}}`
)

func TestSyncWrapsWhatTheRuntimeWouldTake(t *testing.T) {
	for name, test := range map[string]struct {
		files        map[string]string
		wrapped      string
		capabilities map[string]bool
	}{
		"a list, with its plugins' capabilities": {
			map[string]string{"10-a.conflist": bridged, "20-b.conf": single},
			`{"cniVersion":"0.3.1","name":"cluster","plugins":[{"ipam":{"type":"host-local"},"type":"bridge"},{"capabilities":{"other":false,"portMappings":true},"type":"portmap"}]}`,
			map[string]bool{capabilityAnnotations: true, "portMappings": true},
		},
		"a single plugin, as a list": {
			map[string]string{"05-b.conf": single, "10-a.conflist": bridged},
			`{"cniVersion":"0.4.0","name":"plain","plugins":[{"capabilities":{"bandwidth":true},"cniVersion":"0.4.0","name":"plain","type":"ptp"}]}`,
			map[string]bool{capabilityAnnotations: true, "bandwidth": true},
		},
		"neither a disabled file nor a copy of our own": {
			map[string]string{
				"01-off.conflist.disabled": `{`, "02-bak.conf.bak": `{`,
				"03-copy.conflist": `{"cniVersion":"1.1.0","name":"old","plugins":[{"type":"netplane"}]}`,
				"10-a.conf":        single,
			},
			`{"cniVersion":"0.4.0","name":"plain","plugins":[{"capabilities":{"bandwidth":true},"cniVersion":"0.4.0","name":"plain","type":"ptp"}]}`,
			map[string]bool{capabilityAnnotations: true, "bandwidth": true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			for file, content := range test.files {
				n.write(file, content)
			}
			for range 2 { // the second time our own file is there
				if err := n.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			got := n.installed()
			if got == nil {
				t.Fatal("no configuration was written")
			}
			want := &confPlugin{
				Type: "netplane", Capabilities: test.capabilities, Socket: "/run/netplane/agent.sock",
				SpoolDir: "/run/netplane/spool", Journal: "/run/netplane/journal", Wrapped: json.RawMessage(test.wrapped),
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			select {
			case <-n.Installed():
			default:
				t.Error("Installed is not closed")
			}
		})
	}
}

func TestSyncFollowsTheWrappedFile(t *testing.T) {
	n := newNode(t)
	sync := func() {
		t.Helper()
		if err := n.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sync()
	if n.installed() != nil {
		t.Fatal("a configuration was written around nothing")
	}
	n.write("10-a.conf", single)
	sync()
	if got := n.installed(); got == nil || !strings.Contains(string(got.Wrapped), `"plain"`) {
		t.Fatalf("appeared: got %+v", got)
	}
	n.write("10-a.conf", strings.Replace(single, "ptp", "bridge", 1))
	sync()
	if got := n.installed(); !strings.Contains(string(got.Wrapped), `"type":"bridge"`) {
		t.Fatalf("changed: got %s", got.Wrapped)
	}
	n.write("10-a.conf", "{half")
	if err := n.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "reading CNI configuration 10-a.conf") {
		t.Fatalf("half written: got %v", err)
	}
	if got := n.installed(); !strings.Contains(string(got.Wrapped), `"type":"bridge"`) {
		t.Fatalf("half written: got %s", got.Wrapped)
	}
	if err := os.Remove(filepath.Join(n.conf, "10-a.conf")); err != nil {
		t.Fatal(err)
	}
	sync()
	if diff := cmp.Diff([]string{"netplane"}, n.files()); diff != "" {
		t.Errorf("gone: %s", diff)
	}
}

func TestSyncRefusesANetworkOfOurName(t *testing.T) {
	n := newNode(t)
	n.write("10-a.conf", strings.Replace(single, "plain", "netplane", 1))
	err := n.Sync(t.Context())
	if err == nil || !strings.Contains(err.Error(), `its network is named "netplane": give it another name`) {
		t.Errorf("got %v", err)
	}
}

func TestSyncReplacesTheBinaryAndLeavesNothingElse(t *testing.T) {
	n := newNode(t)
	n.write("10-a.conf", single)
	target := filepath.Join(n.bin, "netplane")
	if err := os.WriteFile(target, []byte("older"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := n.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(target)
	if err != nil || string(content) != "#!binary" {
		t.Errorf("got %q, %v", content, err)
	}
	info, err := os.Stat(target)
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("got mode %v, %v", info.Mode(), err)
	}
	if diff := cmp.Diff([]string{"netplane", "00-netplane.conflist", "10-a.conf"}, n.files()); diff != "" {
		t.Error(diff)
	}
	if err := n.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"netplane", "10-a.conf"}, n.files()); diff != "" {
		t.Error(diff)
	}
}

func TestUninstallLeavesWhatTheNodeHad(t *testing.T) {
	n := newNode(t)
	n.write("10-a.conf", single)
	if err := n.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := New(n.config)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // an agent that uninstalls may be restarted
		if err := again.Uninstall(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-again.Installed():
	default:
		t.Error("Installed is not closed: the agent would never be ready")
	}
	if diff := cmp.Diff([]string{"netplane", "10-a.conf"}, n.files()); diff != "" {
		t.Error(diff)
	}
}

// TestRuntimesOfEveryAgeReadOurConfiguration: those that do not know
// cniVersions see 1.0.0, the others take 1.1.0.
func TestRuntimesOfEveryAgeReadOurConfiguration(t *testing.T) {
	n := newNode(t)
	n.write("10-a.conf", single)
	if err := n.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(n.conf, ConfName)
	list, err := libcni.NetworkConfFromFile(file)
	if err != nil || list.CNIVersion != "1.1.0" {
		t.Errorf("a runtime of today takes version %s, %v", list.CNIVersion, err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var old struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(raw, &old); err != nil || old.CNIVersion != "1.0.0" {
		t.Errorf("an older runtime takes version %q, %v", old.CNIVersion, err)
	}
}

func TestRunSeesAFileAppear(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	<-n.Installed()
	n.write("10-a.conf", single)
	deadline := time.Now().Add(lookEvery / 2) // an event, not the regular look
	for n.installed() == nil {
		if time.Now().After(deadline) {
			t.Fatal("the configuration was not written")
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n.installed() == nil {
		t.Error("the configuration went with the agent")
	}
}

func TestRunRemovesWhatAKilledAgentLeft(t *testing.T) {
	n := newNode(t)
	n.write("10-a.conf", single)
	old := time.Now().Add(-partialGrace)
	for name, at := range map[string]time.Time{"net.d/.00-netplane.conflist.new-1": old, "bin/.netplane.new-2": old, "bin/.netplane.new-3": time.Now(), "bin/.other.new-4": old} {
		path := filepath.Join(filepath.Dir(n.conf), name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	<-n.Installed()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{".netplane.new-3", ".other.new-4", "netplane", "00-netplane.conflist", "10-a.conf"}, n.files()); diff != "" {
		t.Error(diff)
	}
}
