// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/attach"
)

func TestPlainPodIsAsIfNetplaneWereNotThere(t *testing.T) {
	h := newHost(t) // the agent never starts
	pod := newSpace(t, "pod")
	for name, annotations := range map[string]map[string]string{
		"some annotations": {"other": "x"}, "no annotations": {},
		"annotations that have become blank": {"netplane.io/networks": " \n", "k8s.v1.cni.cncf.io/networks": " "},
	} {
		t.Run(name, func(t *testing.T) {
			rt := h.runtimeConf("c1", pod, annotations)
			result, err := h.cniAdd(rt)
			must(t, err)
			if diff := cmp.Diff([]string{"veth1", "eth0 10.244.0.9/24"}, names(result)); diff != "" {
				t.Error(diff)
			}
			var stdin struct {
				Name          string
				RuntimeConfig struct{ PortMappings []struct{ HostPort int } }
			}
			raw, err := os.ReadFile(filepath.Join(h.bin, "cluster.stdin.ADD"))
			must(t, err)
			must(t, json.Unmarshal(raw, &stdin))
			if stdin.Name != "cluster-net" || len(stdin.RuntimeConfig.PortMappings) != 1 || stdin.RuntimeConfig.PortMappings[0].HostPort != 8080 {
				t.Errorf("hostPort did not arrive: %s", raw)
			}
			must(t, h.cniCheck(rt))
			must(t, h.cniStatus())
			must(t, h.cniDel(rt))
			want := []string{"ADD c1 eth0", "CHECK c1 eth0", "STATUS  ", "DEL c1 eth0"}
			if diff := cmp.Diff(want, h.calls()); diff != "" {
				t.Error(diff)
			}
			if _, err := os.Stat(filepath.Join(h.state, "spool")); err == nil {
				t.Error("the DEL of a plain pod was spooled")
			}
		})
	}
	t.Run("made before the installation, torn down after", func(t *testing.T) {
		rt := h.runtimeConf("old", pod, map[string]string{})
		cluster, err := libcni.NetworkConfFromFile(filepath.Join(h.conf, "10-cluster.conflist"))
		must(t, err)
		must(t, h.run(func(ctx context.Context) error { _, err := h.cni.AddNetworkList(ctx, cluster, rt); return err }))
		must(t, h.cniDel(rt))
		raw, err := os.ReadFile(filepath.Join(h.bin, "cluster.stdin.DEL"))
		if err != nil || !strings.Contains(string(raw), `"prevResult"`) {
			t.Errorf("the DEL lacks the former result: %s, %v", raw, err)
		}
	})
	t.Run("made after the installation, torn down without us", func(t *testing.T) {
		rt := h.runtimeConf("new", pod, map[string]string{})
		_, err := h.cniAdd(rt)
		must(t, err)
		cluster, err := libcni.NetworkConfFromFile(filepath.Join(h.conf, "10-cluster.conflist"))
		must(t, err)
		must(t, os.Remove(filepath.Join(h.bin, "cluster.stdin.DEL")))
		must(t, h.run(func(ctx context.Context) error { return h.cni.DelNetworkList(ctx, cluster, rt) }))
		raw, err := os.ReadFile(filepath.Join(h.bin, "cluster.stdin.DEL"))
		if err != nil || !strings.Contains(string(raw), `"prevResult"`) {
			t.Errorf("the DEL lacks the former result: %s, %v", raw, err)
		}
	})
}

func TestPodWithNetworksBesideTheClusters(t *testing.T) {
	h := newHost(t, network("data", v1alpha1.PluginBridge, nil))
	h.start(t)
	pod := newSpace(t, "pod")
	rt := h.runtimeConf("c1", pod, asks("data,data@data2"))
	result, err := h.cniAdd(rt)
	must(t, err)
	ends := []string{"", ""}
	for i := range ends {
		ends[i] = result.Interfaces[2+2*i].Name
	}
	want := []string{
		"veth1", "eth0 10.244.0.9/24",
		ends[0], "net1 10.10.1.1/16 fd00:10:10::a0a:101/64", ends[1], "data2 10.10.1.2/16 fd00:10:10::a0a:102/64",
	}
	if diff := cmp.Diff(want, names(result)); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(ends[0], "npv") || result.DNS.Nameservers[0] != "10.96.0.10" {
		t.Errorf("got host end %s, DNS %v", ends[0], result.DNS)
	}
	eventually(t, "the status is reported", func() bool { return len(h.report("c1")) == 3 })
	if first := h.report("c1")[0]; first.Name != "cluster-net" || !first.Default || first.IPs[0] != "10.244.0.9" {
		t.Errorf("got %+v", first)
	}
	must(t, h.cniCheck(rt))
	must(t, h.cniDel(rt))
	must(t, h.cniDel(rt))
	if diff := cmp.Diff([]string{"ADD c1 eth0", "CHECK c1 eth0", "DEL c1 eth0", "DEL c1 eth0"}, h.calls()); diff != "" {
		t.Error(diff)
	}
	h.nothingLeft(t, "eth1", "np-eth1")
}

func TestNetworkOnEth0ReplacesTheClusters(t *testing.T) {
	h := newHost(t, network("management", v1alpha1.PluginMacvlan, nil))
	h.start(t)
	rt := h.runtimeConf("c1", newSpace(t, "pod"), asks("management@eth0"))
	for _, version := range []string{"1.1.0", "1.0.0", "0.4.0", "0.3.1"} {
		h.list.CNIVersion = version
		result, err := h.cniAdd(rt)
		must(t, err)
		if diff := cmp.Diff([]string{"eth0 10.10.1.1/16 fd00:10:10::a0a:101/64"}, names(result)); diff != "" && version == "1.1.0" {
			t.Errorf("version %s: %s", version, diff)
		}
		if len(result.IPs) != 2 {
			t.Errorf("version %s: got %v", version, result.IPs)
		}
		if version >= "0.4.0" {
			must(t, h.cniCheck(rt))
		}
		must(t, h.cniDel(rt))
		if calls := h.calls(); len(calls) > 0 {
			t.Errorf("version %s: the cluster's network was asked: %s", version, calls)
		}
	}
	h.nothingLeft(t, "eth1")
}

func TestFailedAddLeavesNeitherPart(t *testing.T) {
	h := newHost(t, network("data", v1alpha1.PluginBridge, nil))
	pod := newSpace(t, "pod")
	t.Run("no agent", func(t *testing.T) {
		_, err := h.cniAdd(h.runtimeConf("c1", pod, asks("data")))
		wantError(t, err, 11, "netplane agent on this node is not running")
		if calls := h.calls(); len(calls) > 0 {
			t.Errorf("the cluster's network was asked: %v", calls)
		}
	})
	h.start(t)
	t.Run("the agent refuses", func(t *testing.T) {
		for annotation, text := range map[string]string{
			"nowhere":                            `network "nowhere" does not exist`,
			"data@name-of-16-chars":              "the kernel allows 15",
			"data@x,data@x":                      `ifname "x" is already used by item 1`,
			"[]":                                 "the list is empty",
			"- {name: data, ips: [10.10.0.9]}":   "no IPClaim gives pod default/pod-c1 its fixed address on this node yet",
			"- {name: data, defaultRoute: true}": `network "data" has no gateway, which defaultRoute on net1 needs`,
			"- {name: data, ifname: a, nonsense: no}": "nonsense",
		} {
			_, err := h.cniAdd(h.runtimeConf("c1", pod, asks(annotation)))
			code := uint(7)
			if annotation == "nowhere" || strings.Contains(annotation, "ips:") {
				code = 11
			}
			wantError(t, err, code, text)
		}
		if calls := h.calls(); len(calls) > 0 {
			t.Errorf("the cluster's network was asked: %v", calls)
		}
	})
	t.Run("the cluster's network fails", func(t *testing.T) {
		h.failing("ADD", 103, "no more clusters")
		defer func() { must(t, os.Remove(filepath.Join(h.bin, "cluster.fail.ADD"))) }()
		_, err := h.cniAdd(h.runtimeConf("c1", pod, asks("data")))
		wantError(t, err, 103, `network "cluster-net": no more clusters`)
		if diff := cmp.Diff([]string{"ADD c1 eth0", "DEL c1 eth0"}, h.calls()); diff != "" {
			t.Error(diff)
		}
		eventually(t, "the address is free", func() bool { return len(h.ipam.Leases()) == 0 })
	})
	t.Run("a link fails after the cluster's network was added", func(t *testing.T) {
		_, err := h.links.EnsureBridge(t.Context(), "eth1")
		must(t, err)
		spec := specOf("macvlan", "net9", "9")
		spec.Parent = "np-eth1"
		must(t, h.links.Add(t.Context(), pod.path, spec))
		_, err = h.cniAdd(h.runtimeConf("c1", pod, asks("data@net1,data@net9")))
		wantError(t, err, 999, "interface net9: the pod has an interface net9 already")
		if diff := cmp.Diff([]string{"ADD c1 eth0", "DEL c1 eth0"}, h.calls()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"net9"}, pod.links(t)); diff != "" {
			t.Error(diff)
		}
		h.nothingLeft(t, "eth1", "np-eth1")
	})
}

func TestDelWithoutAgentIsSpooledAndReplayed(t *testing.T) {
	h := newHost(t, network("data", v1alpha1.PluginMacvlan, nil))
	h.start(t)
	pod := newSpace(t, "pod")
	rt := h.runtimeConf("c1", pod, asks("data@eth0,data@net1"))
	_, err := h.cniAdd(rt)
	must(t, err)
	h.stop()
	must(t, h.cniDel(rt))
	must(t, h.cniDel(rt))
	dels, _, err := attach.Config{StateDir: h.state}.Spool().List()
	if err != nil || len(dels) != 1 || dels[0].ContainerID != "c1" {
		t.Fatalf("spool: %v, %v", dels, err)
	}
	if len(h.ipam.Leases()) != 2 {
		t.Errorf("addresses were freed without the agent: %v", h.ipam.Leases())
	}
	h.start(t)
	h.nothingLeft(t, "eth1")
	if left := pod.links(t); len(left) > 0 {
		t.Errorf("left in the pod: %v", left)
	}
	if dels, _, err = (attach.Config{StateDir: h.state}).Spool().List(); err != nil || len(dels) > 0 {
		t.Errorf("left in the spool: %v, %v", dels, err)
	}
}

func TestAttemptsWithoutAgentAreNotSpooled(t *testing.T) {
	h := newHost(t, network("data", v1alpha1.PluginMacvlan, nil))
	pod := newSpace(t, "pod")
	attempt := func(id string) {
		t.Helper()
		rt := h.runtimeConf(id, pod, asks("data@eth0"))
		_, err := h.cniAdd(rt)
		wantError(t, err, 11, "netplane agent on this node is not running")
		must(t, h.cniDel(rt)) // as the runtime does then
		if dels, _, err := (attach.Config{StateDir: h.state}).Spool().List(); err != nil || len(dels) > 0 {
			t.Errorf("spool: %v, %v", dels, err)
		}
	}
	attempt("before-the-first-agent")
	h.start(t)
	_, err := h.cniAdd(h.runtimeConf("c1", pod, asks("data@eth0")))
	must(t, err)
	h.stop()
	attempt("after-it")
}

func TestRuntimeThatPassesNoAnnotations(t *testing.T) {
	h := newHost(t, network("data", v1alpha1.PluginMacvlan, nil))
	pod := newSpace(t, "pod")
	_, err := h.cniAdd(h.runtimeConf("plain", pod, nil))
	wantError(t, err, 11, "netplane agent on this node is not running")
	outsider := h.runtimeConf("outsider", pod, nil)
	outsider.Args = nil
	_, err = h.cniAdd(outsider)
	must(t, err) // no pod at all
	h.calls()

	h.start(t)
	h.podNotes["pod-plain"] = map[string]string{"other": "x"}
	h.podNotes["pod-asks"] = asks("data@net1")
	result, err := h.cniAdd(h.runtimeConf("plain", pod, nil))
	must(t, err)
	if len(result.Interfaces) != 2 {
		t.Errorf("got %v", names(result))
	}
	rt := h.runtimeConf("asks", pod, nil)
	result, err = h.cniAdd(rt)
	must(t, err)
	if diff := cmp.Diff([]string{"veth1", "eth0 10.244.0.9/24", "net1 10.10.1.1/16 fd00:10:10::a0a:101/64"}, names(result)); diff != "" {
		t.Error(diff)
	}
	must(t, h.cniCheck(rt))
	must(t, h.cniDel(rt))
	h.nothingLeft(t, "eth1")
}

func TestStatusIsTheClustersAlone(t *testing.T) {
	h := newHost(t)
	must(t, h.cniStatus()) // no agent, and the node stays Ready
	h.failing("STATUS", 50, "not configured yet")
	wantError(t, h.cniStatus(), 50, `network "cluster-net": not configured yet`)
}

func TestGCRemovesWhatTheRuntimeForgot(t *testing.T) {
	h := newHost(t, network("data", v1alpha1.PluginMacvlan, nil))
	h.start(t)
	kept, lost := newSpace(t, "kept"), newSpace(t, "lost")
	for id, pod := range map[string]*space{"kept": kept, "lost": lost} {
		_, err := h.cniAdd(h.runtimeConf(id, pod, asks("data@net1")))
		must(t, err)
	}
	h.calls()
	valid := []types.GCAttachment{{ContainerID: "kept", IfName: "eth0"}}
	must(t, h.run(func(ctx context.Context) error {
		return h.cni.GCNetworkList(ctx, h.list, &libcni.GCArgs{ValidAttachments: valid})
	}))
	if left := lost.links(t); len(left) > 0 {
		t.Errorf("left in the lost pod: %v", left)
	}
	if diff := cmp.Diff([]string{"net1"}, kept.links(t)); diff != "" {
		t.Error(diff)
	}
	if leases := h.ipam.Leases(); len(leases) != 1 || leases[0].ContainerID != "kept" {
		t.Errorf("got %v", leases)
	}
	if calls := h.calls(); !strings.Contains(strings.Join(calls, ","), "DEL lost eth0") || strings.Contains(strings.Join(calls, ","), "DEL kept") {
		t.Errorf("got %v", calls)
	}
}

func TestBinaryIsSmallAndStatic(t *testing.T) {
	binary, err := build()
	must(t, err)
	info, err := os.Stat(binary)
	must(t, err)
	if mib := float64(info.Size()) / (1 << 20); mib > 6 {
		t.Errorf("the CNI binary has %.1f MiB", mib)
	}
	out, err := exec.Command(binary).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "CNI protocol versions supported: 0.1.0") {
		t.Errorf("got %s, %v", out, err)
	}
}
