// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/cni/wire"
)

// hanging is a plugin whose ADD waits for another process, as one that delegates
// does, far longer than it may.
const hanging = `#!/bin/sh
cat >/dev/null
echo "$CNI_COMMAND $CNI_IFNAME" >>"$0.calls"
if [ "$CNI_COMMAND" = ADD ] && [ "$CNI_IFNAME" = net2 ]; then
	(sleep 20; : >"$0.late") & echo $! >"$0.child"
	wait
fi
case $CNI_COMMAND in ADD) echo '{"cniVersion":"1.0.0"}';; VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}';; esac
`

// TestDelegateThatHangsIsEnded: its ADD is ended with all that it has started, and
// the delegates are undone, the last one first.
func TestDelegateThatHangsIsEnded(t *testing.T) {
	dir := t.TempDir()
	plugin := filepath.Join(dir, "hanging")
	if err := os.WriteFile(plugin, []byte(hanging), 0o700); err != nil { //nolint:gosec // it is executed
		t.Fatal(err)
	}
	c := &command{
		args: &skel.CmdArgs{ContainerID: "c1", Netns: "/proc/self/ns/net", Path: dir}, config: config{CacheDir: filepath.Join(dir, "cache")},
		runtime: &libcni.RuntimeConf{}, cni: libcni.NewCNIConfigWithCacheDir([]string{dir}, filepath.Join(dir, "cache"), newExecutor()),
		patience: 2 * time.Second,
	}
	conf := json.RawMessage(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"hanging"}]}`)
	_, err := c.addDelegates(t.Context(), []wire.Delegate{{Network: "first", IfName: "net1", Config: conf}, {Network: "second", IfName: "net2", Config: conf}})
	if err == nil || !strings.Contains(err.Error(), `network "second": no answer within 2s`) {
		t.Errorf("got %v", err)
	}
	raw, err := os.ReadFile(plugin + ".calls")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("ADD net1\nADD net2\nDEL net2\nDEL net1\n", string(raw)); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(plugin + ".late"); err == nil {
		t.Error("what the plugin started was waited for")
	}
	if raw, err = os.ReadFile(plugin + ".child"); err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if state, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(child), "stat")); err == nil && !strings.Contains(string(state), ") Z ") {
		_ = syscall.Kill(child, syscall.SIGKILL)
		t.Errorf("what the plugin started runs on: %s", state)
	}
}

func TestFailureOfAPlugin(t *testing.T) {
	cause := errors.New("exit status 1")
	for name, test := range map[string]struct {
		out, errs string
		code      uint
		want      string
	}{
		"by the specification": {`{"cniVersion":"1.0.0","code":11,"msg":"later","details":"soon"}`, "noise", 11, "later"},
		"other output":         {"panic", "", types.ErrInternal, `the plugin failed (exit status 1) and said "panic"`},
		"other JSON":           {"{}", "", types.ErrInternal, `said "{}"`},
		"standard error":       {"", "no such device", types.ErrInternal, `the plugin failed (exit status 1): "no such device"`},
		"nothing":              {"", "", types.ErrInternal, "the plugin failed without a word: exit status 1"},
	} {
		t.Run(name, func(t *testing.T) {
			var got *types.Error
			if err := failure(cause, []byte(test.out), []byte(test.errs)); !errors.As(err, &got) || got.Code != test.code || !strings.Contains(got.Msg, test.want) {
				t.Errorf("got %v, want code %d and %q", err, test.code, test.want)
			}
		})
	}
}

// TestPluginEndsWithTheBinary: a runtime that gives up kills the binary alone.
func TestPluginEndsWithTheBinary(t *testing.T) {
	if plugin := os.Getenv("NETPLANE_TEST_PLUGIN"); plugin != "" { // the process that is killed
		_, err := newExecutor().ExecPlugin(t.Context(), plugin, nil, os.Environ())
		t.Fatal(err)
	}
	plugin := filepath.Join(t.TempDir(), "slow")
	if err := os.WriteFile(plugin, []byte("#!/bin/sh\necho $$ >\"$0.pid\"\nmv \"$0.pid\" \"$0.started\"\nexec sleep 20\n"), 0o700); err != nil { //nolint:gosec // it is executed
		t.Fatal(err)
	}
	binary := exec.Command(os.Args[0], "-test.run=^TestPluginEndsWithTheBinary$")
	binary.Env = append(os.Environ(), "NETPLANE_TEST_PLUGIN="+plugin)
	if err := binary.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	eventually(t, "the plugin runs", func() bool {
		raw, err := os.ReadFile(plugin + ".started")
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(raw)))
		}
		return err == nil
	})
	if err := binary.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = binary.Wait()
	eventually(t, "the plugin has ended", func() bool {
		state, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		return err != nil || strings.Contains(string(state), ") Z ")
	})
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}
