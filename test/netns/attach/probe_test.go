// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/api/v1alpha1"
)

// probing are the ways in which a pod's interface is made, on networks that
// look for other hosts first.
var probing = []struct {
	name, plugin string
	bridged      bool
}{
	{"macvlan on the NIC", v1alpha1.PluginMacvlan, false},
	{"macvlan on the NIC's bridge", v1alpha1.PluginMacvlan, true},
	{"veth on the NIC's bridge", v1alpha1.PluginBridge, true},
}

func probingAgent(t *testing.T, node *space, plugin string, bridged bool) *agent {
	t.Helper()
	a := newAgent(t, node, network("management", plugin, func(s *v1alpha1.NetworkSpec) { s.ConflictDetection = v1alpha1.ConflictDetectionProbe }))
	a.bridged = bridged
	a.start(t)
	return a
}

func TestAnAddressIsUsedOnlyAfterNobodyAnsweredForIt(t *testing.T) {
	for _, test := range probing {
		t.Run(test.name, func(t *testing.T) {
			nodes := wired(t, "node", "far")
			a, pod := probingAgent(t, nodes[0], test.plugin, test.bridged), newSpace(t, "pod")
			wire := capture(t, nodes[1], "eth1")
			must(t, a.add(t, sandboxOf("c1", pod), "management@net1"))
			if diff := cmp.Diff([]string{"10.10.1.1/16", "fd00:10:10::a0a:101/64"}, pod.addresses(t, "net1")); diff != "" {
				t.Error(diff)
			}
			for _, address := range []string{"10.10.1.1", "fd00:10:10::a0a:101"} {
				seen := wire.about(address)
				asked := slices.Index(seen, "used")
				if asked < 0 || slices.Contains(seen[asked:], "asked for") || asked < 3 {
					t.Errorf("%s was %v, want it to be used after it was asked for three times", address, seen)
				}
			}
			if len(a.taken) > 0 {
				t.Errorf("taken: %v", a.taken)
			}
		})
	}
}

func TestAnAddressThatAForeignHostHasIsNotUsed(t *testing.T) {
	for _, test := range probing {
		for _, foreign := range []string{"10.10.1.1/16", "fd00:10:10::a0a:101/64"} {
			t.Run(test.name+" "+foreign, func(t *testing.T) {
				nodes := wired(t, "node", "far", "witness")
				node, far := nodes[0], nodes[1]
				must(t, far.AddrAdd(far.link(t, "eth1"), &netlink.Addr{IPNet: ipNet(foreign), Flags: unix.IFA_F_NODAD}))
				eventually(t, "the foreign host has its address", func() bool { return slices.Equal([]string{foreign}, far.addresses(t, "eth1")) })
				a, pod := probingAgent(t, node, test.plugin, test.bridged), newSpace(t, "pod")
				wire := capture(t, nodes[2], "eth1")
				must(t, a.add(t, sandboxOf("c1", pod), "management@net1"))
				if diff := cmp.Diff([]string{"10.10.1.2/16", "fd00:10:10::a0a:102/64"}, pod.addresses(t, "net1")); diff != "" {
					t.Error(diff)
				}
				address := netip.MustParsePrefix(foreign).Addr()
				mac := far.link(t, "eth1").Attrs().HardwareAddr
				want := []string{fmt.Sprintf("network \"management\": address %s is in use by a host outside the cluster, with MAC %s", address, mac)}
				if diff := cmp.Diff(want, a.taken); diff != "" {
					t.Error(diff)
				}
				for _, both := range []string{"10.10.1.1", "fd00:10:10::a0a:101"} {
					// The foreign host may answer to everybody; the pod must not.
					if seen := wire.about(both); both != address.String() && slices.Contains(seen, "used") {
						t.Errorf("%s was %v", both, seen)
					}
				}
				other := newSpace(t, "other")
				must(t, a.add(t, sandboxOf("c2", other), "management@net1"))
				if diff := cmp.Diff([]string{"10.10.1.3/16", "fd00:10:10::a0a:103/64"}, other.addresses(t, "net1")); diff != "" {
					t.Errorf("the next pod: %s", diff)
				}
			})
		}
	}
}

func TestAProbeOnANICThatIsDownFailsReadably(t *testing.T) {
	node := wired(t, "node")[0]
	a, pod := probingAgent(t, node, v1alpha1.PluginMacvlan, false), newSpace(t, "pod")
	must(t, node.LinkSetDown(node.link(t, "eth1")))
	err := a.add(t, sandboxOf("c1", pod), "management@net1")
	if err == nil || !strings.Contains(err.Error(), "looking for other hosts with address 10.10.1.1: probing on eth1: eth1 is down") {
		t.Errorf("got %v", err)
	}
	a.nothingLeft(t, "eth1")
}

// about reads what was captured within half a second and tells what happened to
// an address, in order: it was "asked for" by a probe, or "used".
func (f *frames) about(address string) []string {
	var out []string
	for _, frame := range f.all() {
		if asked, used := subject(frame); asked == address {
			out = append(out, "asked for")
		} else if used == address {
			out = append(out, "used")
		}
	}
	return out
}

// all reads until nothing came for half a second. What was read is kept.
func (f *frames) all() [][]byte {
	buf := make([]byte, 2048)
	for quiet := time.Now().Add(500 * time.Millisecond); time.Now().Before(quiet); {
		if n, _, err := unix.Recvfrom(f.fd, buf, 0); err == nil {
			f.read = append(f.read, slices.Clone(buf[:n]))
			quiet = time.Now().Add(500 * time.Millisecond)
		}
	}
	return f.read
}

// subject is the address that a frame asks for without naming its sender, or
// the one that it comes from.
func subject(frame []byte) (asked, used string) {
	if len(frame) < 42 {
		return "", ""
	}
	switch binary.BigEndian.Uint16(frame[12:14]) {
	case unix.ETH_P_ARP:
		if sender := net.IP(frame[28:32]); !sender.IsUnspecified() {
			return "", sender.String()
		}
		return net.IP(frame[38:42]).String(), ""
	case unix.ETH_P_IP:
		return "", net.IP(frame[26:30]).String()
	case unix.ETH_P_IPV6:
		if len(frame) < 78 {
			return "", ""
		}
		source, target := net.IP(frame[22:38]), net.IP(frame[62:78])
		switch neighbour := frame[20] == unix.IPPROTO_ICMPV6; {
		case neighbour && frame[54] == 135 && source.IsUnspecified():
			return target.String(), ""
		case neighbour && frame[54] == 136:
			return "", target.String()
		}
		return "", source.String()
	}
	return "", ""
}
