// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/wire"
)

func TestPodsOfNetworkAttachmentDefinitions(t *testing.T) {
	h := newDelegatingHost(t, delegating("own", "own", "", nil), network("data", v1alpha1.PluginMacvlan, nil))
	h.nads = map[string]string{
		"default/inline":    `{"cniVersion":"0.3.1","type":"bridge","bridge":"nad0","capabilities":{"mac":true},"ipam":{"type":"host-local","subnet":"10.98.0.0/24"}}`,
		"default/Own":       "",
		"kube-system/other": `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"bridge","bridge":"nad1","isGateway":true,"ipam":{"type":"host-local","subnet":"10.97.0.0/24"}}]}`,
		"default/evil":      `{"type":"ptp"}`,
	}
	h.start(t)
	pod := newSpace(t, "pod")
	selecting := func(annotations ...string) map[string]string {
		out := map[string]string{}
		for i := 0; i < len(annotations); i += 2 {
			out[annotations[i]] = annotations[i+1]
		}
		return out
	}
	const networks, inItsPlace = wire.AnnotationNPWGNetworks, wire.AnnotationMultusDefaultNetwork
	t.Run("instead of Networks", func(t *testing.T) {
		rt := h.runtimeConf("c1", pod, selecting(networks, `[{"name":"inline","mac":"c2:b0:57:49:47:f1","default-route":["10.98.0.1"]}]`))
		_, err := h.cniAdd(rt)
		must(t, err)
		if diff := cmp.Diff([]string{"10.98.0.2/24"}, pod.addresses(t, "net1")); diff != "" {
			t.Error(diff)
		}
		if mac := pod.link(t, "net1").Attrs().HardwareAddr.String(); mac != "c2:b0:57:49:47:f1" {
			t.Errorf("got MAC %s", mac)
		}
		if routes := pod.routes(t, 2); !slices.Contains(routes, "default via 10.98.0.1 dev net1") {
			t.Errorf("got %v", routes)
		}
		eventually(t, "the status is reported", func() bool { return len(h.report("c1")) == 2 })
		if last := h.report("c1")[1]; last.Name != "default/inline" || last.MAC != "c2:b0:57:49:47:f1" || last.Default {
			t.Errorf("got %+v", last)
		}
		must(t, h.cniCheck(rt))
		must(t, h.cniDel(rt))
		must(t, h.cniDel(rt))
	})
	t.Run("beside Networks, and in the place of the cluster's", func(t *testing.T) {
		h.calls()
		rt := h.runtimeConf("c2", pod, selecting(wire.AnnotationNetworks, "data,own", networks, "inline@x0,inline", inItsPlace, "other"))
		_, err := h.cniAdd(rt)
		must(t, err)
		if diff := cmp.Diff([]string{"eth0", "net1", "net2", "net3", "x0"}, sortedStrings(pod.links(t))); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"10.97.0.2/24"}, pod.addresses(t, "eth0")); diff != "" {
			t.Error(diff)
		}
		must(t, h.cniCheck(rt))
		must(t, h.cniDel(rt))
		if calls := h.calls(); len(calls) > 0 {
			t.Errorf("the cluster's network was asked: %s", calls)
		}
	})
	t.Run("a runtime that passes no annotations", func(t *testing.T) {
		h.podNotes["pod-c3"] = selecting(networks, "inline")
		rt := h.runtimeConf("c3", pod, nil)
		_, err := h.cniAdd(rt)
		must(t, err)
		if diff := cmp.Diff([]string{"net1"}, pod.links(t)); diff != "" {
			t.Error(diff)
		}
		must(t, h.cniDel(rt))
	})
	t.Run("hot plug of a Network beside them", func(t *testing.T) {
		rt := h.runtimeConf("c5", pod, selecting(wire.AnnotationNetworks, "data@eth1", networks, "inline@net1"))
		h.asked["pod-c5"] = "data@eth1"
		_, err := h.cniAdd(rt)
		must(t, err)
		addresses := pod.addresses(t, "net1")
		if note := h.change(t, "c5", ""); note != "removed eth1" {
			t.Error(note)
		}
		if note := h.change(t, "c5", "data@eth2,data@net1"); note != `added eth2 on network "data"` {
			t.Error(note)
		}
		if diff := cmp.Diff([]string{"eth2", "net1"}, sortedStrings(pod.links(t))); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(addresses, pod.addresses(t, "net1")); diff != "" {
			t.Error(diff)
		}
		must(t, h.cniCheck(rt))
		must(t, h.cniDel(rt))
	})
	t.Run("a plugin that tenants may not run", func(t *testing.T) {
		_, err := h.cniAdd(h.runtimeConf("c4", pod, selecting(networks, "evil")))
		wantError(t, err, 7, `plugin type "ptp" is not among those`)
	})
	if left := pod.links(t); len(left) > 0 {
		t.Errorf("left in the pod: %v", left)
	}
	for _, name := range []string{"inline", "Own", "other"} {
		if left := ownAddresses(t, name); len(left) > 0 {
			t.Errorf("addresses of %s left: %v", name, left)
		}
	}
	noRecords(t)
	for _, name := range []string{"nad0", "nad1", "own0"} {
		must(t, h.node.LinkDel(h.node.link(t, name)))
	}
	h.nothingLeft(t, "eth1")
}

// Where Multus is the cluster's network, its annotations stay its own.
func TestMultusKeepsItsAnnotations(t *testing.T) {
	h := newDelegatingHost(t)
	must(t, os.Rename(filepath.Join(h.bin, "cluster"), filepath.Join(h.bin, "multus-shim")))
	conf := `{"cniVersion":"1.1.0","name":"multus-cni-network","plugins":[{"type":"multus-shim"}]}`
	must(t, os.WriteFile(filepath.Join(h.conf, "10-cluster.conflist"), []byte(conf), 0o600))
	h.wrapAgain(t) // no agent runs
	rt := h.runtimeConf("c1", newSpace(t, "pod"), map[string]string{wire.AnnotationNPWGNetworks: "inline"})
	_, err := h.cniAdd(rt)
	must(t, err)
	must(t, h.cniDel(rt))
}

func sortedStrings(in []string) []string {
	slices.Sort(in)
	return in
}

// withDevice is a plugin that hands over a device, and writes which.
const withDevice = `#!/bin/sh
file="$(sed -n 's/.*"CNIDeviceInfoFile":"\([^"]*\)".*/\1/p')"
case $CNI_COMMAND in
ADD)
	echo '{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:18:02.5"}}' > "$file"
	echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}]}';;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}';;
esac
`

// What a plugin writes of the device behind an interface stands in
// network-status, and its file goes with the pod.
func TestDeviceOfADelegateIsReported(t *testing.T) {
	const files = "/var/run/k8s.cni.cncf.io/devinfo/cni/c1-*"
	h := newDelegatingHost(t, delegating("dev", "device", `{"type":"device","capabilities":{"CNIDeviceInfoFile":true}}`, nil), delegating("own", "own", "", nil))
	must(t, os.WriteFile(filepath.Join(h.bin, "device"), []byte(withDevice), 0o755))
	h.start(t)
	// The plugin makes no link: what is there is the pod's own.
	pod := newSpace(t, "pod")
	must(t, pod.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "net1", TxQLen: -1}}))
	rt := h.runtimeConf("c1", pod, asks("dev@net1,own@net2"))
	_, err := h.cniAdd(rt)
	must(t, err)
	eventually(t, "the status is reported", func() bool { return len(h.report("c1")) == 3 })
	var got []string
	for _, a := range h.report("c1") {
		got = append(got, a.Interface+" "+string(a.DeviceInfo))
	}
	want := []string{"eth0 ", `net1 {"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:18:02.5"}}`, "net2 "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if found, err := filepath.Glob(files); len(found) != 1 || err != nil {
		t.Errorf("while the pod lives there are %v (%v)", found, err)
	}
	must(t, h.cniDel(rt))
	must(t, h.cniDel(rt))
	if found, err := filepath.Glob(files); len(found) != 0 || err != nil {
		t.Errorf("after DEL there are %v (%v)", found, err)
	}
	must(t, h.node.LinkDel(h.node.link(t, "own0")))
}
