// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/netplane/netplane/api/v1alpha1"
)

// slow is a plugin whose ADD never ends by itself.
const slow = `#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
ADD) echo $$ >"$0.pid"; mv "$0.pid" "$0.started"; exec sleep 60;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}';;
esac
`

// TestABinaryThatIsKilledInAnAdd: what it has run ends with it, and what its
// plugins have made keeps its addresses until the runtime's DEL.
func TestABinaryThatIsKilledInAnAdd(t *testing.T) {
	h := newDelegatingHost(t, delegating("routed", "ptp", `{"type":"ptp"}`, ourAddresses), delegating("late", "slow", `{"type":"slow"}`, nil),
		network("data", v1alpha1.PluginMacvlan, nil))
	plugin := filepath.Join(h.bin, "slow")
	must(t, os.WriteFile(plugin, []byte(slow), 0o755))
	h.start(t)
	pod := newSpace(t, "pod")
	pid := ""
	h.started = func(binary *os.Process) {
		eventually(t, "the second plugin runs", func() bool {
			raw, err := os.ReadFile(plugin + ".started")
			pid = strings.TrimSpace(string(raw))
			return err == nil
		})
		must(t, binary.Kill())
	}
	annotations := asks("routed@net1,data@net3,late@net2")
	_, err := h.execute("ADD", map[string]string{
		"CNI_CONTAINERID": "c1", "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0", "PATH": os.Getenv("PATH"),
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-c1;K8S_POD_UID=uid-c1",
	}, func(conf map[string]any) {
		conf["runtimeConfig"] = map[string]any{"io.kubernetes.cri.pod-annotations": annotations}
	})
	if err == nil {
		t.Fatal("the binary was not killed")
	}
	eventually(t, "the plugin has ended", func() bool {
		state, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
		return err != nil || strings.Contains(string(state), ") Z ")
	})
	eventually(t, "the agent has given back what nobody has", func() bool { return len(h.ipam.Leases()) == 1 })
	lease := h.ipam.Leases()[0]
	if !slices.Contains(pod.addresses(t, "net1"), lease.Address.String()+"/16") || lease.IfName != "net1" {
		t.Errorf("in use: %v, in the pod: %v", lease, pod.addresses(t, "net1"))
	}
	must(t, h.cniDel(h.runtimeConf("c1", pod, annotations)))
	if left := pod.links(t); len(left) > 0 {
		t.Errorf("left in the pod: %v", left)
	}
	noRecords(t)
	h.nothingLeft(t, "eth1")
}
