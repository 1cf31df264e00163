// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/netplane/netplane/api/v1alpha1"
)

// kind is one way in which a pod's interface is made: by a Network of ours and
// by a reference plugin. Who adds a kind adds a row to kinds.
type kind struct {
	name    string
	plugin  string
	change  func(*v1alpha1.NetworkSpec)
	bridged bool // the NIC is in a bridge of ours on both nodes
	// reference is the reference plugin's configuration without addresses and MAC.
	reference func() map[string]any
}

func kinds() []kind {
	return []kind{
		{name: "macvlan", plugin: v1alpha1.PluginMacvlan, change: func(s *v1alpha1.NetworkSpec) { s.MTU = 1400 }, reference: func() map[string]any {
			return map[string]any{"type": "macvlan", "master": "eth1", "mode": "bridge", "mtu": 1400}
		}},
		{name: "bridge", plugin: v1alpha1.PluginBridge, bridged: true, reference: func() map[string]any {
			return map[string]any{"type": "bridge", "bridge": "np-eth1"}
		}},
	}
}

// pair is one pod of ours and one of a reference plugin.
type pair struct {
	*host
	rt  *libcni.RuntimeConf
	pod *space
	ref *reference
}

// newPair runs the first ADD of both.
func newPair(t *testing.T, k *kind, version string) *pair {
	t.Helper()
	p := &pair{host: newHost(t, network("data", k.plugin, func(s *v1alpha1.NetworkSpec) {
		s.Routes = []v1alpha1.Route{{To: "192.0.2.0/24", Via: "10.10.0.1"}, {To: "2001:db8::/32", Via: "fd00:10:10::1"}}
		if k.change != nil {
			k.change(s)
		}
	})), pod: newSpace(t, "pod")}
	node := wired(t, "reference")[0]
	if k.bridged {
		for _, links := range []interface {
			EnsureBridge(context.Context, string) (string, error)
		}{p.links, openLinks(t, node)} {
			_, err := links.EnsureBridge(t.Context(), "eth1")
			must(t, err)
		}
	}
	p.start(t)
	p.list.CNIVersion = version
	p.rt = p.runtimeConf("c1", p.pod, asks("data@net1"))
	result, err := p.cniAdd(p.rt)
	must(t, err)
	p.ref = newReference(t, node, version, "net1", k.reference(), result)
	theirs, err := p.ref.add()
	must(t, err)
	if diff := cmp.Diff(resultText(theirs), resultText(result)); diff != "" {
		t.Errorf("result (-reference +ours):\n%s", diff)
	}
	return p
}

// resultText is what a result says of the pod's own interface net1.
func resultText(result *current.Result) string {
	var out strings.Builder
	for i, iface := range result.Interfaces {
		if iface.Name != "net1" {
			continue
		}
		fmt.Fprintf(&out, "net1 mac %s", iface.Mac)
		for _, ip := range result.IPs {
			if ip.Interface != nil && *ip.Interface == i {
				fmt.Fprintf(&out, " %s", ip.Address.String())
			}
		}
		for _, route := range result.Routes {
			if route.GW != nil {
				fmt.Fprintf(&out, " route %s via %s", route.Dst.String(), route.GW)
			}
		}
	}
	return out.String()
}

// same compares both pods and both nodes.
func (p *pair) same(t *testing.T, when string) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(p.ref.pod.text(t), "\n"), strings.Split(p.pod.text(t), "\n")); diff != "" {
		t.Errorf("%s: in the pod (-reference +ours):\n%s", when, diff)
	}
	if diff := cmp.Diff(strings.Split(macless(p.ref.node, t), "\n"), strings.Split(macless(p.node, t), "\n")); diff != "" {
		t.Errorf("%s: in the node (-reference +ours):\n%s", when, diff)
	}
}

// macless leaves out the random MACs of a node's NIC and of veths' ends, and
// what follows from them.
func macless(s *space, t *testing.T) string {
	t.Helper()
	var out []string
	for line := range strings.Lines(s.text(t)) {
		if strings.Contains(line, "fe80:") {
			continue
		}
		before, rest, ok := strings.Cut(line, " mac ")
		if ok {
			_, after, _ := strings.Cut(rest, " ")
			line = before + " " + after
		}
		out = append(out, line)
	}
	return strings.Join(out, "")
}

// TestCommandsAreThoseOfTheReferencePlugins runs each command once and again,
// for every kind and version, and looks into the kernel after each.
func TestCommandsAreThoseOfTheReferencePlugins(t *testing.T) {
	for _, k := range kinds() {
		for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
			t.Run(k.name+" "+version, func(t *testing.T) {
				p := newPair(t, &k, version)
				p.same(t, "ADD")
				p.checks(t, version)

				before := p.pod.text(t)
				_, ours := p.cniAdd(p.rt)
				_, theirs := p.ref.add()
				if ours == nil || theirs == nil {
					t.Errorf("second ADD: ours %v, reference %v, want both to refuse", ours, theirs)
				}
				p.same(t, "second ADD")
				if diff := cmp.Diff(before, p.pod.text(t)); diff != "" {
					t.Errorf("second ADD changed the pod: %s", diff)
				}
				p.checks(t, version)

				for _, when := range []string{"DEL", "second DEL"} {
					must(t, p.cniDel(p.rt))
					must(t, p.ref.del())
					p.same(t, when)
				}
				p.nothingLeft(t, p.node.links(t)...)
				p.collects(t)
			})
		}
	}
}

// checks runs CHECK, which version 0.4.0 brought.
func (p *pair) checks(t *testing.T, version string) {
	t.Helper()
	ours, theirs := p.cniCheck(p.rt), p.ref.check()
	if wanted := version == "0.3.1"; (ours != nil) != wanted || (theirs != nil) != wanted {
		t.Errorf("CHECK: ours %v, reference %v, want an error %t", ours, theirs, wanted)
	}
}

// collects adds once more and has the runtime forget the attachment.
func (p *pair) collects(t *testing.T) {
	t.Helper()
	_, err := p.cniAdd(p.rt)
	must(t, err)
	_, err = p.ref.add()
	must(t, err)
	must(t, p.run(func(ctx context.Context) error { return p.cni.GCNetworkList(ctx, p.list, &libcni.GCArgs{}) }))
	must(t, p.ref.gc())
	p.same(t, "GC")
	p.nothingLeft(t, p.node.links(t)...)
}

// TestCheckLooksAtTheKernelAndAtWhatTheRuntimeWasTold: at each interface, and at
// all of it.
func TestCheckLooksAtTheKernelAndAtWhatTheRuntimeWasTold(t *testing.T) {
	h := newHost(t, network("data", v1alpha1.PluginBridge, func(s *v1alpha1.NetworkSpec) {
		s.Routes = []v1alpha1.Route{{To: "192.0.2.0/24", Via: "10.10.0.1"}}
	}))
	h.start(t)
	pod := newSpace(t, "pod")
	rt := h.runtimeConf("c1", pod, asks("data@net1,data@net2"))
	for _, test := range []struct {
		name string
		// spoil is told the second interface's address, and returns what CHECK must say.
		spoil func(t *testing.T, address string) string
	}{
		{"an interface is gone", func(t *testing.T, _ string) string {
			must(t, pod.LinkDel(pod.link(t, "net2")))
			return "interface net2"
		}},
		{"an interface is down", func(t *testing.T, _ string) string {
			must(t, pod.LinkSetDown(pod.link(t, "net1")))
			return "interface net1 is down"
		}},
		{"a route is gone", func(t *testing.T, _ string) string {
			must(t, pod.RouteDel(&netlink.Route{LinkIndex: pod.link(t, "net1").Attrs().Index, Dst: ipNet("192.0.2.0/24"), Gw: net.ParseIP("10.10.0.1")}))
			return "interface net1 lacks the route to 192.0.2.0/24"
		}},
		{"the runtime was told another address", func(t *testing.T, address string) string {
			h.tamper(t, address, "10.10.1.63/16")
			return "for interface net2, not [" + address
		}},
		{"the runtime was told another name", func(t *testing.T, _ string) string {
			h.tamper(t, `"net2"`, `"net3"`)
			return "prevResult lacks interface net2\nprevResult has an interface net3 that the sandbox was not given"
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			result, err := h.cniAdd(rt)
			must(t, err)
			must(t, h.cniCheck(rt))
			want := test.spoil(t, result.IPs[3].Address.String())
			wantError(t, h.cniCheck(rt), 999, want)
			must(t, h.cniDel(rt))
		})
	}
}

// tamper changes what the runtime keeps of its ADDs.
func (h *host) tamper(t *testing.T, from, to string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(libcni.CacheDir, "results", "netplane-*"))
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("the runtime's cache has %v", files)
	}
	raw, err := os.ReadFile(files[0])
	must(t, err)
	next := strings.ReplaceAll(string(raw), from, to)
	if next == string(raw) {
		t.Fatalf("%s is not in %s", from, raw)
	}
	must(t, os.WriteFile(files[0], []byte(next), 0o600))
}

func TestErrorsHaveTheCodesOfTheSpecification(t *testing.T) {
	h := newHost(t, network("data", v1alpha1.PluginMacvlan, nil))
	h.start(t)
	pod := newSpace(t, "pod")
	_, err := h.cniAdd(h.runtimeConf("c1", &space{path: filepath.Join(t.TempDir(), "gone")}, asks("data@net1")))
	wantError(t, err, 3, "container c1 has no network namespace")
	h.list.CNIVersion = "9.0.0"
	_, err = h.cniAdd(h.runtimeConf("c1", pod, asks("data@net1")))
	if err == nil {
		t.Error("a version of the future was accepted")
	}
	h.nothingLeft(t, "eth1")
}
