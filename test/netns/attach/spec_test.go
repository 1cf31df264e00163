// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/install"
)

// execute runs the binary by its protocol alone: CNI_* variables, the plugin's
// configuration on standard input. It returns what the binary prints.
func (h *host) execute(command string, variables map[string]string, change func(conf map[string]any)) (map[string]any, error) {
	h.t.Helper()
	conf := map[string]any{}
	must(h.t, json.Unmarshal(h.list.Plugins[0].Bytes, &conf))
	conf["name"], conf["cniVersion"] = h.list.Name, "1.1.0"
	if change != nil {
		change(conf)
	}
	stdin, err := json.Marshal(conf)
	must(h.t, err)
	var stdout bytes.Buffer
	err = h.run(func(ctx context.Context) error {
		binary := exec.CommandContext(ctx, filepath.Join(h.bin, install.PluginType))
		binary.Env = []string{"CNI_COMMAND=" + command, "CNI_PATH=" + h.bin}
		for name, value := range variables {
			binary.Env = append(binary.Env, name+"="+value)
		}
		binary.Stdin, binary.Stdout = bytes.NewReader(stdin), &stdout
		if err := binary.Start(); err != nil {
			return err
		}
		if h.started != nil {
			h.started(binary.Process)
		}
		return binary.Wait()
	})
	answer := map[string]any{}
	if stdout.Len() > 0 {
		must(h.t, json.Unmarshal(stdout.Bytes(), &answer))
	}
	return answer, err
}

// wantCode looks into what a failing command printed.
func wantCode(t *testing.T, answer map[string]any, err error, code float64, text string) {
	t.Helper()
	msg, _ := answer["msg"].(string)
	if err == nil || answer["code"] != code || !strings.Contains(msg, text) || answer["cniVersion"] != "1.1.0" {
		t.Errorf("%v, printed %v, want code %v and %q", err, answer, code, text)
	}
}

// TestGCOfWhatTheRuntimeHasNoRecordOf: a runtime that lost its cache cannot send
// DELs, and the list of valid attachments alone says what is left.
func TestGCOfWhatTheRuntimeHasNoRecordOf(t *testing.T) {
	h := newHost(t, network("data", v1alpha1.PluginBridge, nil))
	h.start(t)
	kept, lost := newSpace(t, "kept"), newSpace(t, "lost")
	for id, pod := range map[string]*space{"kept": kept, "lost": lost} {
		_, err := h.cniAdd(h.runtimeConf(id, pod, asks("data@net1")))
		must(t, err)
	}
	must(t, os.RemoveAll(libcni.CacheDir))

	answer, err := h.execute("GC", nil, nil)
	wantCode(t, answer, err, 7, "GC without cni.dev/valid-attachments")
	if leases := h.ipam.Leases(); len(leases) != 2 {
		t.Errorf("a GC without a list removed something: %v", leases)
	}
	collect := func() {
		must(t, h.run(func(ctx context.Context) error {
			return h.cni.GCNetworkList(ctx, h.list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "kept", IfName: "eth0"}}})
		}))
	}
	collect()
	if left := lost.links(t); len(left) != 1 {
		t.Errorf("a sandbox that may be younger than the list has %v", left)
	}
	h.clock.seconds.Store(60)
	for range 2 {
		collect()
		if diff := cmp.Diff([][]string{{"net1"}, nil}, [][]string{kept.links(t), lost.links(t)}); diff != "" {
			t.Errorf("in the pods: %s", diff)
		}
		if leases := h.ipam.Leases(); len(leases) != 1 || leases[0].ContainerID != "kept" {
			t.Errorf("addresses in use: %v", leases)
		}
	}
	must(t, h.run(func(ctx context.Context) error { return h.cni.GCNetworkList(ctx, h.list, &libcni.GCArgs{}) }))
	h.nothingLeft(t, "eth1", "np-eth1")
}

// TestDelGetsAlongWithWhatIsGone: without a namespace, with one that is gone,
// and with one whose interfaces are gone.
func TestDelGetsAlongWithWhatIsGone(t *testing.T) {
	for name, gone := range map[string]func(pod *space, rt *libcni.RuntimeConf){
		"the runtime names no namespace": func(_ *space, rt *libcni.RuntimeConf) { rt.NetNS = "" },
		"the namespace is gone":          func(pod *space, rt *libcni.RuntimeConf) { rt.NetNS = pod.path + "-gone" },
		"an interface is gone":           func(pod *space, _ *libcni.RuntimeConf) { must(t, pod.LinkDel(pod.link(t, "net1"))) },
	} {
		for _, plugin := range []string{v1alpha1.PluginMacvlan, v1alpha1.PluginBridge} {
			t.Run(name+", "+plugin, func(t *testing.T) {
				h := newHost(t, network("data", plugin, nil))
				h.start(t)
				pod := newSpace(t, "pod")
				rt := h.runtimeConf("c1", pod, asks("data@net1,data@net2"))
				_, err := h.cniAdd(rt)
				must(t, err)
				gone(pod, rt)
				for range 2 {
					must(t, h.cniDel(rt))
				}
				var bridge []string
				if plugin == v1alpha1.PluginBridge {
					bridge = []string{"np-eth1"}
				}
				h.nothingLeft(t, append([]string{"eth1"}, bridge...)...)
				if left := pod.links(t); len(left) > 0 {
					t.Errorf("left in the pod: %v", left)
				}
			})
		}
	}
}

// TestCommandsThatAreWrongAreRefusedByCode: the specification's section Error.
func TestCommandsThatAreWrongAreRefusedByCode(t *testing.T) {
	h := newHost(t, network("data", v1alpha1.PluginMacvlan, nil))
	h.start(t)
	pod := newSpace(t, "pod")
	variables := func(change map[string]string) map[string]string {
		out := map[string]string{
			"CNI_CONTAINERID": "c1", "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0",
			"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-c1;K8S_POD_UID=uid-c1",
		}
		for name, value := range change {
			out[name] = value
		}
		return out
	}
	asking := func(networks string) func(map[string]any) {
		return func(conf map[string]any) {
			conf["runtimeConfig"] = map[string]any{"io.kubernetes.cri.pod-annotations": asks(networks)}
		}
	}
	for _, test := range []struct {
		name, command string
		variables     map[string]string
		conf          func(map[string]any)
		code          float64
		text          string
	}{
		{"a version of the future", "ADD", nil, func(conf map[string]any) { conf["cniVersion"] = "9.0.0" }, 1, "incompatible CNI versions"},
		{"CHECK before there was one", "CHECK", nil, func(conf map[string]any) { conf["cniVersion"] = "0.3.1" }, 1, "config version does not allow CHECK"},
		{"a namespace that is gone", "ADD", map[string]string{"CNI_NETNS": pod.path + "-gone"}, asking("data"), 3, "container c1 has no network namespace"},
		{"no container", "ADD", map[string]string{"CNI_CONTAINERID": ""}, nil, 4, "CNI_CONTAINERID"},
		{"no interface", "ADD", map[string]string{"CNI_IFNAME": ""}, nil, 4, "CNI_IFNAME"},
		{"an impossible interface", "ADD", map[string]string{"CNI_IFNAME": "a/b"}, nil, 4, "interface name"},
		{"no name", "ADD", nil, func(conf map[string]any) { conf["name"] = "" }, 7, "network name"},
		{"a configuration that wraps nothing", "ADD", nil, func(conf map[string]any) { delete(conf, "wrapped") }, 7, "lacks socket, spoolDir or wrapped"},
		{"annotations that are none", "ADD", nil, func(conf map[string]any) {
			conf["runtimeConfig"] = map[string]any{"io.kubernetes.cri.pod-annotations": 5}
		}, 6, "reading the pod's annotations"},
		{"a network that does not exist", "ADD", nil, asking("nowhere"), 11, `network "nowhere" does not exist`},
		{"an annotation that cannot be read", "ADD", nil, asking("[]"), 7, "the list is empty"},
		{"CHECK without the ADD's answer", "CHECK", nil, asking("data"), 7, "CHECK without prevResult"},
		{"CHECK of what never was", "CHECK", nil, func(conf map[string]any) {
			asking("data")(conf)
			conf["prevResult"] = map[string]any{"cniVersion": "1.1.0"}
		}, 999, "sandbox c1 was given no networks"},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := h.execute(test.command, variables(test.variables), test.conf)
			if conf := answer["cniVersion"]; test.code == 1 {
				answer["cniVersion"] = "1.1.0" // of the configuration, or what the binary knows
				if conf == nil {
					t.Error("the error names no version")
				}
			}
			wantCode(t, answer, err, test.code, test.text)
		})
	}
	if calls := h.calls(); len(calls) > 0 {
		t.Errorf("the cluster's network was asked: %v", calls)
	}
	h.nothingLeft(t, "eth1")
}

func TestVersionNamesAllThatAreServed(t *testing.T) {
	h := newHost(t)
	answer, err := h.execute("VERSION", nil, nil)
	must(t, err)
	supported := fmt.Sprint(answer["supportedVersions"])
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		if !slices.Contains(strings.Fields(strings.Trim(supported, "[]")), version) {
			t.Errorf("%s is not among %s", version, supported)
		}
	}
}
