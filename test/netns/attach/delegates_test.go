// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/attach"
	"github.com/netplane/netplane/cni/delegate"
	"github.com/netplane/netplane/cni/install"
)

// referencePlugins builds the CNI project's own plugins, as the node image does.
var referencePlugins = sync.OnceValues(func() (string, error) {
	command := exec.Command("../../../hack/binaries.sh", "plugins/bridge", "plugins/ptp", "plugins/host-local")
	command.Stderr = os.Stderr
	out, err := command.Output()
	if err != nil {
		return "", err
	}
	lines := strings.Fields(string(out))
	return lines[len(lines)-1], nil
})

// noting is a plugin that notes in what order it is called, makes nothing, and
// fails where it is told to.
const noting = `#!/bin/sh
cat > /dev/null
echo "$CNI_COMMAND $(basename "$0") $CNI_IFNAME" >> "$(dirname "$0")/order"
if [ -f "$0.fail.$CNI_COMMAND" ]; then echo '{"cniVersion":"1.0.0","code":100,"msg":"out of order"}'; exit 1; fi
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}]}';;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}';;
esac
`

// delegating is a Network of a plugin that is not built in.
func delegating(name, plugin, config string, change func(*v1alpha1.NetworkSpec)) *v1alpha1.Network {
	return network(name, plugin, func(s *v1alpha1.NetworkSpec) {
		s.Subnet, s.Subnet6 = "", ""
		if config != "" {
			s.PluginConfig = &apiextensionsv1.JSON{Raw: []byte(config)}
		}
		if change != nil {
			change(s)
		}
	})
}

func ourAddresses(s *v1alpha1.NetworkSpec) { s.Subnet, s.Subnet6 = "10.10.0.0/16", "fd00:10:10::/64" }

// newDelegatingHost has the reference plugins installed, two that note, and a
// network "Own" of the node.
func newDelegatingHost(t *testing.T, networks ...*v1alpha1.Network) *host {
	t.Helper()
	built, err := referencePlugins()
	must(t, err)
	h := newHost(t, networks...)
	for _, name := range []string{"bridge", "ptp", "host-local"} {
		must(t, os.Symlink(filepath.Join(built, name), filepath.Join(h.bin, name)))
	}
	for _, name := range []string{"first", "second"} {
		must(t, os.WriteFile(filepath.Join(h.bin, name), []byte(noting), 0o755))
	}
	own := `{"cniVersion":"1.0.0","name":"Own","plugins":[{"type":"bridge","bridge":"own0","ipam":{"type":"host-local","subnet":"10.99.0.0/24"}}]}`
	must(t, os.WriteFile(filepath.Join(h.conf, "20-own.conflist"), []byte(own), 0o600))
	h.delegates = &delegate.Library{ConfDir: h.conf, BinDir: h.bin}
	return h
}

// order returns in what order the noting plugins were called since the last look.
func (h *host) order() []string {
	h.t.Helper()
	raw, err := os.ReadFile(filepath.Join(h.bin, "order"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(h.t, err)
	must(h.t, os.Remove(filepath.Join(h.bin, "order")))
	return strings.Split(strings.TrimSpace(string(raw)), "\n")
}

// ownAddresses are what host-local has given out, on the disk.
func ownAddresses(t *testing.T, network string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("/var/lib/cni/networks", network))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if e.Name() != "lock" && !strings.HasPrefix(e.Name(), "last_reserved_ip") {
			out = append(out, e.Name())
		}
	}
	return out
}

func noRecords(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir("/var/lib/cni/netplane")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if len(entries) > 0 {
		t.Errorf("records of delegates left: %v", entries)
	}
}

func TestDelegatesBesideTheClustersNetwork(t *testing.T) {
	h := newDelegatingHost(t,
		delegating("routed", "ptp", `{"type":"ptp"}`, ourAddresses),
		delegating("own", "own", `{"mtu":1400,"isDefaultGateway":true}`, nil))
	h.start(t)
	pod := newSpace(t, "pod")
	rt := h.runtimeConf("c1", pod, asks("routed@net1,own@net2"))
	result, err := h.cniAdd(rt)
	must(t, err)
	got := slices.DeleteFunc(names(result), func(line string) bool { return strings.HasPrefix(line, "veth") || line == "own0" })
	want := []string{"eth0 10.244.0.9/24", "net1 10.10.1.1/16 fd00:10:10::a0a:101/64", "net2 10.99.0.2/24"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"net1", "net2"}, pod.links(t)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"10.10.1.1/16", "fd00:10:10::a0a:101/64"}, pod.addresses(t, "net1")); diff != "" {
		t.Error(diff)
	}
	if mtu := pod.link(t, "net2").Attrs().MTU; mtu != 1400 {
		t.Errorf("net2 has MTU %d, although pluginConfig says 1400", mtu)
	}
	defaults := whole(t, func() ([]netlink.Route, error) {
		return pod.RouteListFiltered(2, &netlink.Route{}, netlink.RT_FILTER_DST)
	})
	if len(defaults) != 1 || defaults[0].Priority < 1<<20 {
		t.Errorf("the default route that the plugin brought is not behind all others: %v", defaults)
	}
	eventually(t, "the status is reported", func() bool { return len(h.report("c1")) == 3 })
	if last := h.report("c1")[2]; last.Name != "own" || last.Interface != "net2" || len(last.IPs) != 1 || last.IPs[0] != "10.99.0.2" || last.MAC == "" {
		t.Errorf("got %+v", last)
	}
	if seen := reach(t, h.node, pod, "10.10.1.1"); seen != "10.10.1.0" {
		t.Errorf("the pod saw %s", seen)
	}
	must(t, h.cniCheck(rt))
	_, err = h.cniAdd(rt)
	wantError(t, err, 4, "CNI_CONTAINERID c1 has its networks already; DEL must come before another ADD")
	must(t, h.cniCheck(rt))

	must(t, pod.LinkDel(pod.link(t, "net2")))
	if err := h.cniCheck(rt); err == nil || !strings.Contains(err.Error(), `network "own"`) {
		t.Errorf("CHECK without the interface: %v", err)
	}
	must(t, h.cniDel(rt))
	must(t, h.cniDel(rt))
	if left := pod.links(t); len(left) > 0 {
		t.Errorf("left in the pod: %v", left)
	}
	if left := ownAddresses(t, "Own"); len(left) > 0 {
		t.Errorf("the plugin's addresses left: %v", left)
	}
	noRecords(t)
	must(t, h.node.LinkDel(h.node.link(t, "own0"))) // stays by the plugin's own will
	h.nothingLeft(t, "eth1")
}

func TestDelegateOnEth0(t *testing.T) {
	h := newDelegatingHost(t, delegating("routed", "ptp", `{"type":"ptp","capabilities":{"portMappings":true}}`, ourAddresses))
	h.start(t)
	pod := newSpace(t, "pod")
	rt := h.runtimeConf("c1", pod, asks("routed@eth0"))
	for _, version := range []string{"1.1.0", "1.0.0", "0.4.0", "0.3.1"} {
		h.list.CNIVersion = version
		result, err := h.cniAdd(rt)
		must(t, err)
		if len(result.IPs) != 2 {
			t.Errorf("version %s: got %v", version, result.IPs)
		}
		if routes := pod.routes(t, 2); !slices.Contains(routes, "default via 10.10.1.0 dev eth0") {
			t.Errorf("version %s: got %v", version, routes)
		}
		if seen := reach(t, h.node, pod, result.IPs[0].Address.IP.String()); seen != "10.10.1.0" {
			t.Errorf("version %s: the pod saw %s", version, seen)
		}
		if version >= "0.4.0" {
			must(t, h.cniCheck(rt))
		}
		must(t, h.cniDel(rt))
		if calls := h.calls(); len(calls) > 0 {
			t.Errorf("version %s: the cluster's network was asked: %s", version, calls)
		}
	}
	noRecords(t)
	h.nothingLeft(t, "eth1")
}

func TestFailureUndoesDelegatesInReverse(t *testing.T) {
	h := newDelegatingHost(t,
		delegating("one", "first", `{"type":"first"}`, nil), delegating("two", "second", `{"type":"second"}`, nil),
		delegating("own", "own", "", nil), network("data", v1alpha1.PluginMacvlan, nil))
	h.start(t)
	pod := newSpace(t, "pod")
	fail := func(t *testing.T, plugin, command string) {
		t.Helper()
		path := filepath.Join(h.bin, plugin+".fail."+command)
		must(t, os.WriteFile(path, nil, 0o600))
		t.Cleanup(func() { _ = os.Remove(path) })
	}
	t.Run("the second fails", func(t *testing.T) {
		fail(t, "second", "ADD")
		_, err := h.cniAdd(h.runtimeConf("c1", pod, asks("one,two")))
		wantError(t, err, 100, `network "two": out of order`)
		if diff := cmp.Diff([]string{"ADD first net1", "ADD second net2", "DEL second net2", "DEL first net1"}, h.order()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"ADD c1 eth0", "DEL c1 eth0"}, h.calls()); diff != "" {
			t.Error(diff)
		}
		noRecords(t)
	})
	t.Run("and undoing it fails, until the runtime's DEL", func(t *testing.T) {
		rt := h.runtimeConf("c1", pod, asks("one,two"))
		t.Run("ADD", func(t *testing.T) {
			fail(t, "second", "ADD")
			fail(t, "second", "DEL")
			_, err := h.cniAdd(rt)
			wantError(t, err, 100, "removing it again failed too")
			if err := h.cniDel(rt); err == nil || !strings.Contains(err.Error(), `network "two": out of order`) {
				t.Errorf("DEL: got %v", err)
			}
		})
		want := []string{"ADD first net1", "ADD second net2", "DEL second net2", "DEL first net1", "DEL second net2", "DEL first net1"}
		if diff := cmp.Diff(want, h.order()); diff != "" {
			t.Error(diff)
		}
		must(t, h.cniDel(rt))
		if diff := cmp.Diff([]string{"DEL second net2", "DEL first net1"}, h.order()); diff != "" {
			t.Error(diff)
		}
		noRecords(t)
		h.calls()
	})
	t.Run("the agent fails after them", func(t *testing.T) {
		// The plugin says that it has made net1, but has not.
		_, err := h.cniAdd(h.runtimeConf("c1", pod, asks("own@net2,one@net1,data@net3")))
		wantError(t, err, 999, "interface net1: looking for what the plugin made")
		if diff := cmp.Diff([]string{"ADD first net1", "DEL first net1"}, h.order()); diff != "" {
			t.Error(diff)
		}
		if left := pod.links(t); len(left) > 0 {
			t.Errorf("left in the pod: %v", left)
		}
		if left := ownAddresses(t, "Own"); len(left) > 0 {
			t.Errorf("the plugin's addresses left: %v", left)
		}
		noRecords(t)
	})
	h.nothingLeft(t, "eth1", "own0")
}

// TestAnAddressIsNotFreeWhileADelegatesInterfaceHasIt: whatever ends the ADD, as
// long as the plugin's DEL has not succeeded.
func TestAnAddressIsNotFreeWhileADelegatesInterfaceHasIt(t *testing.T) {
	// ptp, but for its DEL, which fails for a while.
	const unwilling = `#!/bin/sh
if [ "$CNI_COMMAND" = DEL ] && [ -f "$0.fail" ]; then cat >/dev/null; echo '{"cniVersion":"1.0.0","code":103,"msg":"unwilling"}'; exit 1; fi
exec "$(dirname "$0")/ptp"
`
	h := newDelegatingHost(t, delegating("routed", "unwilling", `{"type":"unwilling"}`, ourAddresses), network("data", v1alpha1.PluginMacvlan, nil))
	plugin := filepath.Join(h.bin, "unwilling")
	must(t, os.WriteFile(plugin, []byte(unwilling), 0o755))
	h.start(t)
	pod := newSpace(t, "pod")
	keeps := func(t *testing.T, when string) {
		t.Helper()
		leases := h.ipam.Leases()
		if len(leases) != 1 || leases[0].IfName != "net1" || !slices.Contains(pod.addresses(t, "net1"), leases[0].Address.String()+"/16") {
			t.Errorf("%s: addresses in use: %v, links %v", when, leases, pod.links(t))
		}
	}
	for name, test := range map[string]struct {
		annotation string
		code       uint
		text       string
		before     func(t *testing.T)
	}{
		"Commit fails": {"routed@net1,data@net9", 999, "the pod has an interface net9 already", func(t *testing.T) {
			spec := specOf("macvlan", "net9", "9")
			spec.Parent, spec.Addresses, spec.Routes = "eth1", nil, nil
			must(t, h.links.Add(t.Context(), pod.path, spec))
			t.Cleanup(func() { must(t, pod.LinkDel(pod.link(t, "net9"))) })
		}},
		"the plugin's ADD succeeds and GC is called": {"routed@net1", 0, "", func(*testing.T) {}},
	} {
		t.Run(name, func(t *testing.T) {
			test.before(t)
			must(t, os.WriteFile(plugin+".fail", nil, 0o600))
			rt := h.runtimeConf("c1", pod, asks(test.annotation))
			_, err := h.cniAdd(rt)
			if test.code > 0 {
				wantError(t, err, test.code, test.text)
			} else {
				must(t, err)
			}
			keeps(t, "after ADD")
			h.clock.seconds.Store(60)
			old := time.Now().Add(-time.Minute)
			must(t, os.Chtimes("/var/lib/cni/netplane/c1.json", old, old))
			if err := h.run(func(ctx context.Context) error { return h.cni.GCNetworkList(ctx, h.list, &libcni.GCArgs{}) }); err == nil || !strings.Contains(err.Error(), "unwilling") {
				t.Errorf("GC: %v", err)
			}
			keeps(t, "after GC")
			h.stop()
			h.start(t)
			keeps(t, "after a restart")
			if err := h.cniDel(rt); err == nil {
				t.Error("DEL succeeds")
			}
			keeps(t, "after DEL")
			must(t, os.Remove(plugin+".fail"))
			must(t, h.cniDel(rt))
			noRecords(t)
			h.nothingLeft(t, "eth1")
		})
	}
}

func TestDelegatesAreRemovedWithoutAgentAndConfiguration(t *testing.T) {
	h := newDelegatingHost(t, delegating("own", "own", "", nil), network("data", v1alpha1.PluginMacvlan, nil))
	h.start(t)
	pod := newSpace(t, "pod")
	rt := h.runtimeConf("c1", pod, asks("own@net1,data@net2"))
	_, err := h.cniAdd(rt)
	must(t, err)
	h.stop()
	must(t, os.Remove(filepath.Join(h.conf, "20-own.conflist")))
	must(t, h.cniDel(rt))
	if diff := cmp.Diff([]string{"net2"}, pod.links(t)); diff != "" {
		t.Error(diff)
	}
	if left := ownAddresses(t, "Own"); len(left) > 0 {
		t.Errorf("the plugin's addresses left: %v", left)
	}
	noRecords(t)
	h.start(t) // replays what was spooled
	if left := pod.links(t); len(left) > 0 {
		t.Errorf("left in the pod: %v", left)
	}
	h.nothingLeft(t, "eth1", "own0")
	if dels, _, err := (attach.Config{StateDir: h.state}).Spool().List(); err != nil || len(dels) > 0 {
		t.Errorf("left in the spool: %v, %v", dels, err)
	}
}

// The cluster's own network may be a delegate, too: its GC must not take the
// second interface for garbage, and its pool must be one.
func TestGCKnowsDelegates(t *testing.T) {
	h := newDelegatingHost(t, delegating("again", "shared", "", nil))
	shared := `{"cniVersion":"1.1.0","name":"shared","plugins":[{"type":"bridge","bridge":"own0","ipam":{"type":"host-local","subnet":"10.99.0.0/24"}}]}`
	must(t, os.Remove(filepath.Join(h.conf, "20-own.conflist")))
	must(t, os.WriteFile(filepath.Join(h.conf, "10-cluster.conflist"), []byte(shared), 0o600))
	h.wrapAgain(t)
	h.start(t)
	kept, lost := newSpace(t, "kept"), newSpace(t, "lost")
	for id, pod := range map[string]*space{"kept": kept, "lost": lost} {
		_, err := h.cniAdd(h.runtimeConf(id, pod, asks("again@net1")))
		must(t, err)
	}
	if got := ownAddresses(t, "shared"); len(got) != 4 {
		t.Errorf("four interfaces have the addresses %v", got)
	}
	must(t, h.run(func(ctx context.Context) error {
		return h.cni.GCNetworkList(ctx, h.list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "kept", IfName: "eth0"}}})
	}))
	if diff := cmp.Diff([]string{"eth0", "net1"}, kept.links(t)); diff != "" {
		t.Errorf("in the pod that lives: %s", diff)
	}
	if left := lost.links(t); len(left) > 0 {
		t.Errorf("in the pod that is gone: %v", left)
	}
	if got := ownAddresses(t, "shared"); len(got) != 2 {
		t.Errorf("two interfaces have the addresses %v", got)
	}
	must(t, h.cniDel(h.runtimeConf("kept", kept, asks("again@net1"))))
	if left := append(kept.links(t), ownAddresses(t, "shared")...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	noRecords(t)
}

// wrapAgain has the installer look at the node's configurations once more.
func (h *host) wrapAgain(t *testing.T) {
	t.Helper()
	must(t, h.installer.Sync(t.Context()))
	var err error
	h.list, err = libcni.NetworkConfFromFile(filepath.Join(h.conf, install.ConfName))
	must(t, err)
}

func TestDelegateThatIgnoresOurAddress(t *testing.T) {
	h := newDelegatingHost(t, delegating("one", "first", `{"type":"first"}`, ourAddresses))
	h.start(t)
	_, err := h.cniAdd(h.runtimeConf("c1", newSpace(t, "pod"), asks("one")))
	wantError(t, err, 7, `plugin "first" did not give net1 the address 10.10.1.1 of the Network`)
	if diff := cmp.Diff([]string{"ADD first net1", "DEL first net1"}, h.order()); diff != "" {
		t.Error(diff)
	}
	eventually(t, "the address is free", func() bool { return len(h.ipam.Leases()) == 0 })
	noRecords(t)
}

func TestBinaryAnswersAsIPAMPlugin(t *testing.T) {
	binary, err := build()
	must(t, err)
	pod := newSpace(t, "pod")
	ipam := func(command, config string) (string, error) {
		run := exec.Command(binary)
		run.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=c1", "CNI_NETNS=" + pod.path, "CNI_IFNAME=net1", "CNI_PATH=/nowhere"}
		run.Stdin = strings.NewReader(config)
		out, err := run.Output()
		return string(out), err
	}
	const config = `{"cniVersion":"1.0.0","name":"n","type":"ptp","ipam":{"type":"netplane","addresses":[{"address":"10.10.0.5/16","gateway":"10.10.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}}`
	out, err := ipam("ADD", config)
	must(t, err)
	var got struct {
		CNIVersion string
		IPs        []struct{ Address, Gateway string }
		Routes     []struct{ Dst string }
	}
	must(t, json.Unmarshal([]byte(out), &got))
	if got.CNIVersion != "1.0.0" || len(got.IPs) != 1 || got.IPs[0].Address != "10.10.0.5/16" || got.IPs[0].Gateway != "10.10.0.1" || len(got.Routes) != 1 {
		t.Errorf("got %s", out)
	}
	for _, command := range []string{"DEL", "CHECK"} {
		if out, err := ipam(command, config); err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("%s: %q, %v", command, out, err)
		}
	}
	out, err = ipam("ADD", `{"cniVersion":"1.0.0","name":"n","type":"ptp","ipam":{"type":"netplane"}}`)
	if err == nil || !strings.Contains(out, "has no addresses") {
		t.Errorf("without addresses: %q, %v", out, err)
	}
}
