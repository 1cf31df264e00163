// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
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

// refusing is a plugin that notes its calls and fails the DEL of one container.
const refusing = `#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'; exit;;
ADD) echo '{"cniVersion":"1.0.0"}';;
esac
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >>"$0.calls"
if [ "$CNI_COMMAND $CNI_CONTAINERID" = "DEL stuck" ]; then echo '{"cniVersion":"1.0.0","code":103,"msg":"stuck"}'; exit 1; fi
`

func newCommandOf(t *testing.T, plugins map[string]string) (*command, string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range plugins {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil { //nolint:gosec // it is executed
			t.Fatal(err)
		}
	}
	wrapped, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"1.0.0","name":"wrapped","plugins":[{"type":"refusing"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(dir, "cache")
	return &command{
		args: &skel.CmdArgs{Path: dir}, config: config{CacheDir: cache, PluginConf: types.PluginConf{Name: "netplane"}}, wrapped: wrapped,
		runtime: &libcni.RuntimeConf{}, cni: libcni.NewCNIConfigWithCacheDir([]string{dir}, cache, newExecutor()), patience: 5 * time.Second, letGo: func() {},
	}, dir
}

func callsIn(t *testing.T, dir string) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "refusing.calls"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(raw)), "\n")
}

// The agent gives away the addresses of what is not in the list that comes out.
func TestGCOfDelegatesKeepsWhatIsNotGone(t *testing.T) {
	const old, now = 2 * time.Minute, 0
	for name, test := range map[string]struct {
		id        string
		age       time.Duration
		locked    bool
		broken    bool
		wantCalls []string
		wantValid bool
		wantCode  uint
	}{
		"forgotten":                 {id: "lost", age: old, wantCalls: []string{"DEL lost net1"}},
		"in the list":               {id: "kept", age: old, wantValid: true},
		"its DEL fails":             {id: "stuck", age: old, wantCalls: []string{"DEL stuck net1"}, wantValid: true, wantCode: 103},
		"its ADD has just begun":    {id: "young", age: now, wantValid: true},
		"its ADD has taken long":    {id: "slow", age: old, locked: true, wantValid: true},
		"its record cannot be read": {id: "broken", age: old, broken: true, wantValid: true, wantCode: types.ErrInternal},
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := newCommandOf(t, map[string]string{"refusing": refusing})
			conf := json.RawMessage(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"refusing"}]}`)
			letGo, err := c.records().put(&record{ContainerID: test.id, Delegates: []wire.Delegate{{Network: "n", IfName: "net1", Config: conf}}})
			if err != nil {
				t.Fatal(err)
			}
			defer letGo()
			if !test.locked {
				letGo()
			}
			file := filepath.Join(string(c.records()), test.id+recordSuffix)
			if test.broken {
				if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			made := time.Now().Add(-test.age)
			if err := os.Chtimes(file, made, made); err != nil {
				t.Fatal(err)
			}
			valid, err := c.gcDelegates(t.Context(), []types.GCAttachment{{ContainerID: "kept", IfName: "eth0"}}, time.Now())
			var known *types.Error
			switch code := uint(0); {
			case errors.As(err, &known):
				if code = known.Code; code != test.wantCode {
					t.Errorf("got %v, want code %d", err, test.wantCode)
				}
			case err != nil && test.wantCode != types.ErrInternal || err == nil && test.wantCode != 0:
				t.Errorf("got %v, want code %d", err, test.wantCode)
			}
			if diff := cmp.Diff(test.wantCalls, callsIn(t, dir)); diff != "" {
				t.Error(diff)
			}
			if got := slices.ContainsFunc(valid, func(a types.GCAttachment) bool { return a.ContainerID == test.id }); got != test.wantValid {
				t.Errorf("valid: %v, want %s among them: %v", valid, test.id, test.wantValid)
			}
		})
	}
}

func TestGCOfANetworkThatWasWrappedBefore(t *testing.T) {
	pod := [][2]string{{"K8S_POD_NAME", "web"}}
	former := `{"cniVersion":"1.0.0","name":"former","plugins":[{"type":"refusing"}]}`
	for name, test := range map[string]struct {
		conf  string
		netns string
		args  [][2]string
		valid []types.GCAttachment
		want  []string
	}{
		"its namespace is gone":        {conf: former, netns: "gone", args: pod, want: []string{"DEL c1 eth0"}},
		"its namespace is there":       {conf: former, netns: "/proc/self/ns/net", args: pod},
		"the runtime knows it":         {conf: former, netns: "gone", args: pod, valid: []types.GCAttachment{{ContainerID: "c1", IfName: "eth0"}}},
		"of somebody else":             {conf: former, netns: "gone"},
		"its plugin is gone":           {conf: `{"cniVersion":"1.0.0","name":"former","plugins":[{"type":"refusing"},{"type":"absent"}]}`, netns: "gone", args: pod},
		"of what is wrapped now":       {conf: `{"cniVersion":"1.0.0","name":"wrapped","plugins":[{"type":"refusing"}]}`, netns: "gone", args: pod},
		"one that wants no collection": {conf: `{"cniVersion":"1.0.0","name":"former","disableGC":true,"plugins":[{"type":"refusing"}]}`, netns: "gone", args: pod},
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := newCommandOf(t, map[string]string{"refusing": refusing, "absent": refusing})
			list, err := libcni.NetworkConfFromBytes([]byte(test.conf))
			if err != nil {
				t.Fatal(err)
			}
			netns := test.netns
			if netns == "gone" {
				netns = filepath.Join(dir, "gone")
			}
			if _, err := c.cni.AddNetworkList(t.Context(), list, &libcni.RuntimeConf{ContainerID: "c1", NetNS: netns, IfName: "eth0", Args: test.args}); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{"refusing.calls", "absent"} {
				if err := os.Remove(filepath.Join(dir, file)); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.gcFormer(t.Context(), test.valid); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(test.want, callsIn(t, dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The wrapped network's own GC gets a list that may be older than a pod.
func TestWhatWasWrappedMomentsAgoIsNoGarbage(t *testing.T) {
	c, _ := newCommandOf(t, map[string]string{"refusing": refusing})
	if _, err := c.cni.AddNetworkList(t.Context(), c.wrapped, &libcni.RuntimeConf{ContainerID: "c1", NetNS: "/proc/self/ns/net", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	for age, want := range map[time.Duration][]types.GCAttachment{0: {{ContainerID: "c1", IfName: "eth0"}}, gcGrace: nil} {
		if diff := cmp.Diff(want, c.young(time.Now().Add(age))); diff != "" {
			t.Errorf("after %s: %s", age, diff)
		}
	}
}

func TestSeveralErrorsKeepACode(t *testing.T) {
	busy := types.NewError(11, "busy", "")
	for name, test := range map[string]struct {
		all  []error
		want uint
		text string
	}{
		"of a plugin":        {[]error{nil, busy}, 11, "busy"},
		"of plugins":         {[]error{types.NewError(103, "stuck", ""), busy}, 103, "stuck; busy"},
		"behind one without": {[]error{errors.New("odd"), busy}, 11, "odd; busy"},
		"none has one":       {[]error{errors.New("odd"), errors.New("even")}, types.ErrInternal, "odd; even"},
	} {
		var got *types.Error
		if err := together(test.all...); !errors.As(err, &got) || got.Code != test.want || got.Msg != test.text {
			t.Errorf("%s: got %v, want %d %s", name, err, test.want, test.text)
		}
	}
	if err := together(nil, nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

func TestSilenceOfTheAgentIsToldApart(t *testing.T) {
	for want, err := range map[string]error{
		"is not running":         os.NewSyscallError("connect", syscall.ECONNREFUSED),
		"did not answer in time": os.ErrDeadlineExceeded,
		"gave no answer":         errors.New("EOF"),
	} {
		if got := silence(err); got != want {
			t.Errorf("%v: got %q, want %q", err, got, want)
		}
	}
}
