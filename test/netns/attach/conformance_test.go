// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// pair is one pod of ours and one of a reference plugin.
type pair struct {
	*host
	kind *kind
	rt   *libcni.RuntimeConf
	pod  *space
	ref  *reference
}

// newPair runs the first ADD of both, on two nodes whose NICs have the same MAC.
func newPair(t *testing.T, k *kind, version string) *pair {
	t.Helper()
	routes := append([][2]string{{"192.0.2.0/24", "10.10.0.1"}, {"2001:db8::/32", "fd00:10:10::1"}}, k.routes...)
	p := &pair{kind: k, host: newHost(t, network("data", k.plugin, func(s *v1alpha1.NetworkSpec) {
		s.Routes = []v1alpha1.Route{{To: "192.0.2.0/24", Via: "10.10.0.1"}, {To: "2001:db8::/32", Via: "fd00:10:10::1"}}
		if k.change != nil {
			k.change(s)
		}
	})), pod: newSpace(t, "pod")}
	p.list.CNIVersion = version
	node := wired(t, "reference")[0]
	for _, kind := range k.needs {
		needs(t, node, kind)
	}
	node.sameMAC(t, p.node)
	if k.parent != nil {
		for _, links := range []*link.Links{p.links, openLinks(t, node)} {
			_, err := links.EnsureParent(t.Context(), *k.parent)
			must(t, err)
		}
		p.bridged = k.parent.Bridge
	}
	if k.prepare != nil {
		k.prepare(t, p, node)
	}
	p.start(t)
	if k.started != nil {
		k.started(t, p)
	}
	p.rt = p.runtimeConf("c1", p.pod, asks(k.annotation()))
	result, err := p.cniAdd(p.rt)
	must(t, err)
	p.ref = newReference(t, node, version, "net1", k.reference(t), routes, result)
	theirs, err := p.ref.add()
	must(t, err)
	if diff := cmp.Diff(resultText(theirs), resultText(result)); diff != "" {
		t.Errorf("result (-reference +ours):\n%s", diff)
	}
	return p
}

// sameMAC gives a node's NIC the MAC of another node's, and what follows from it.
func (s *space) sameMAC(t *testing.T, other *space) {
	t.Helper()
	nic := s.link(t, "eth1")
	must(t, s.LinkSetDown(nic))
	must(t, s.LinkSetHardwareAddr(nic, other.link(t, "eth1").Attrs().HardwareAddr))
	must(t, s.LinkSetUp(nic))
	eventually(t, "the NIC is up again", func() bool { return s.link(t, "eth1").Attrs().OperState == netlink.OperUp })
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

// same compares both pods and both nodes, once the kernel has settled their
// addresses and ports.
func (p *pair) same(t *testing.T, when string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		inPod := cmp.Diff(p.lines(t, p.ref.pod), p.lines(t, p.pod))
		inNode := ""
		if !p.kind.podOnly {
			inNode = cmp.Diff(p.lines(t, p.ref.node), p.lines(t, p.node))
		}
		if inPod+inNode == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s (-reference +ours):\nin the pod: %s\nin the node: %s", when, inPod, inNode)
			return
		}
	}
}

func (p *pair) lines(t *testing.T, s *space) []string {
	t.Helper()
	lines := strings.Split(s.text(t), "\n")
	if (s == p.pod || s == p.ref.pod) && slices.Contains(s.links(t), "net1") {
		for _, path := range p.kind.settings {
			lines = append(lines, path+" "+s.setting(t, path))
		}
	}
	return lines
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

				before := p.lines(t, p.pod)
				_, ours := p.cniAdd(p.rt)
				_, theirs := p.ref.add()
				if ours == nil || theirs == nil {
					t.Errorf("second ADD: ours %v, reference %v, want both to refuse", ours, theirs)
				}
				if k.strays {
					p.ref.sweep(t)
				}
				p.same(t, "second ADD")
				if diff := cmp.Diff(before, p.lines(t, p.pod)); diff != "" {
					t.Errorf("second ADD changed the pod: %s", diff)
				}
				p.checks(t, version)

				for _, when := range []string{"DEL", "second DEL"} {
					must(t, p.cniDel(p.rt))
					if err := p.ref.del(); when == "DEL" || !k.deletedOnce {
						must(t, err)
					}
					p.gone(t, when)
				}
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
	p.gone(t, "GC")
}

// gone compares what is left.
func (p *pair) gone(t *testing.T, when string) {
	t.Helper()
	if p.kind.mend != nil {
		p.kind.mend(t, p.ref.node)
	}
	p.same(t, when)
	left := p.node.links(t)
	if p.kind.podOnly {
		left = []string{"eth1"}
		eventually(t, "what only the pod needed is gone", func() bool { return slices.Equal(p.node.links(t), left) })
	}
	p.nothingLeft(t, left...)
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
