// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/v1alpha1"
)

// clusterEth0 is the answer of a cluster network that made what clustered makes.
const clusterEth0 = `{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"'$CNI_NETNS'"}],"ips":[` +
	`{"interface":0,"address":"10.244.0.9/24","gateway":"10.244.0.1"},{"interface":0,"address":"fd00:244::9/64","gateway":"fd00:244::1"}]}`

// TestSourceRoutingLeadsWhereTheReferencesDoes asks the kernel of both pods by
// where packets leave that come from each of the pod's addresses. Tables and
// rules differ: the reference plugin sbr moves the interface's routes away from
// the main table, so that a connection without a source, which ours still lets
// out by the network, leaves by eth0.
func TestSourceRoutingLeadsWhereTheReferencesDoes(t *testing.T) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			p := newPair(t, &kind{
				plugin: v1alpha1.PluginMacvlan, change: func(s *v1alpha1.NetworkSpec) { s.Gateway, s.Gateway6 = "10.10.0.1", "fd00:10:10::1" },
				prepare: func(t *testing.T, p *pair, _ *space) { p.clusterAnswers(t, clusterEth0) },
				started: func(t *testing.T, p *pair) { clustered(t, p.pod) },
				reference: func(*testing.T) []map[string]any {
					return []map[string]any{plugin("type", "macvlan", "master", "eth1"), plugin("type", "sbr")}
				},
			}, version)
			clustered(t, p.ref.pod)
			if version != "0.3.1" {
				must(t, p.cniCheck(p.rt)) // the reference's macvlan misses the routes that its sbr moved
			}
			sources := map[bool][]string{false: {"10.244.0.9"}, true: {"fd00:244::9"}}
			for _, address := range p.pod.addresses(t, "net1") {
				own := netip.MustParsePrefix(address).Addr()
				sources[own.Is6()] = append(sources[own.Is6()], own.String())
			}
			for v6, destinations := range map[bool][]string{false: {client4, "10.10.0.77", "192.0.2.9", "10.244.0.77"}, true: {client6, "fd00:10:10::77", "2001:db8:9::9", "fd00:244::77"}} {
				for _, from := range sources[v6] {
					for _, to := range destinations {
						if diff := cmp.Diff(p.ref.pod.leaves(t, from, to), p.pod.leaves(t, from, to)); diff != "" {
							t.Errorf("from %s to %s (-reference +ours): %s", from, to, diff)
						}
					}
				}
			}
			for range 2 {
				must(t, p.cniDel(p.rt))
				must(t, p.ref.del())
			}
			if diff := cmp.Diff([]string{"eth0"}, p.pod.links(t)); diff != "" {
				t.Errorf("left in the pod: %s", diff)
			}
		})
	}
}

// leaves says by what a packet leaves a pod.
func (s *space) leaves(t *testing.T, from, to string) string {
	t.Helper()
	route := s.ip(t, false, fmt.Sprintf("route get %s from %s", to, from))[0][0]
	return fmt.Sprintf("dev %v gateway %v", route["dev"], route["gateway"])
}

// TestSpoofCheckDropsAllThatTheReferenceDrops: the reference plugin's looks at
// MACs alone, ours at addresses, too.
func TestSpoofCheckDropsAllThatTheReferenceDrops(t *testing.T) {
	rows := bridgeKinds()
	k := rows[slices.IndexFunc(rows, func(k kind) bool { return k.name == "bridge with a spoof check" })]
	p := newPair(t, &k, "1.1.0")
	p.same(t, "ADD") // the kernel has settled the addresses
	prefixes := p.pod.addresses(t, "net1")
	good, bad := forged(p.pod.link(t, "net1").Attrs().HardwareAddr, netip.MustParsePrefix(prefixes[0]).Addr(), netip.MustParsePrefix(prefixes[1]).Addr(),
		netip.MustParseAddr(linkLocal(t, p.pod, "net1")))
	// What is sent to all arrives at the bridge itself.
	ours, theirs := capture(t, p.node, "np-eth1"), capture(t, p.ref.node, "np-eth1")
	marks := byte(0)
	dropped := func(pod *space, wire *frames, frame []byte) bool {
		mark := slices.Clone(good["IPv4"])
		marks++
		mark[len(mark)-1] = marks
		return !arrives(t, pod, wire, frame, mark)
	}
	for name, frame := range good {
		if dropped(p.pod, ours, frame) || dropped(p.ref.pod, theirs, frame) {
			t.Errorf("a good frame is dropped: %s", name)
		}
	}
	var reference []string
	for name, frame := range bad {
		if dropped(p.ref.pod, theirs, frame) {
			reference = append(reference, name)
		}
		if !dropped(p.pod, ours, frame) {
			t.Errorf("a forged frame passes: %s", name)
		}
	}
	if diff := cmp.Diff("MAC", strings.Join(reference, " ")); diff != "" {
		t.Errorf("the reference drops: %s", diff)
	}
}
