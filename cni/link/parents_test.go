// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

func TestTaggedNamesFitTheKernel(t *testing.T) {
	for _, test := range []struct {
		nic  string
		tag  int
		want string
	}{
		{"eth1", 5, "eth1.5"},
		{"eth1", 4094, "eth1.4094"},
		{"enp129s0f0", 4094, "enp129s0f0.4094"},
		{"enp129s0f0np0", 100, "enp12-" + digest("enp129s0f0np0")[:5] + ".100"},
		{"enp129s0f0np1", 100, "enp12-" + digest("enp129s0f0np1")[:5] + ".100"},
	} {
		got := TaggedName(test.nic, test.tag)
		if got != test.want || len(got) > maxName {
			t.Errorf("%s tag %d: got %s, want %s", test.nic, test.tag, got, test.want)
		}
	}
}

// host makes links of a host: names to what they are.
type host struct{ all []netlink.Link }

func (h *host) attrs(name, master string) netlink.LinkAttrs {
	out := netlink.NewLinkAttrs()
	out.Name, out.Index = name, len(h.all)+1
	if master != "" {
		out.MasterIndex = h.index(master)
	}
	return out
}

func (h *host) index(name string) int {
	for _, l := range h.all {
		if l.Attrs().Name == name {
			return l.Attrs().Index
		}
	}
	return 0
}

func (h *host) bridge(name string) {
	h.all = append(h.all, &netlink.Bridge{LinkAttrs: h.attrs(name, "")})
}

func (h *host) nic(name, master string) {
	h.all = append(h.all, &netlink.Device{LinkAttrs: h.attrs(name, master)})
}

func (h *host) port(name, master string) {
	h.all = append(h.all, &netlink.Veth{LinkAttrs: h.attrs(name, master)})
}

func (h *host) macvlan(name, on string) {
	a := h.attrs(name, "")
	a.ParentIndex = h.index(on)
	h.all = append(h.all, &netlink.Macvlan{LinkAttrs: a})
}

func (h *host) tagged(name, on string, tag int, ours bool, master string) {
	a := h.attrs(name, master)
	a.ParentIndex = h.index(on)
	if ours {
		a.Group = linkGroup
	}
	h.all = append(h.all, &netlink.Vlan{LinkAttrs: a, VlanId: tag, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
}

func TestIdleParentsAreThoseThatNobodyStandsOn(t *testing.T) {
	for _, test := range []struct {
		name  string
		build func(h *host)
		used  []string
		want  []string
	}{
		{"a bridge with its NIC", func(h *host) { h.bridge("np-eth1"); h.nic("eth1", "np-eth1") }, nil, []string{"np-eth1"}},
		{"a bridge whose NIC was pulled out", func(h *host) { h.bridge("np-eth1") }, nil, []string{"np-eth1"}},
		{"a bridge that pods use", func(h *host) { h.bridge("np-eth1"); h.nic("eth1", "np-eth1") }, []string{"np-eth1"}, nil},
		{"a bridge with a port that no record tells of", func(h *host) {
			h.bridge("np-eth1")
			h.nic("eth1", "np-eth1")
			h.port("tap0", "np-eth1")
		}, nil, nil},
		{"a bridge with a macvlan of the host", func(h *host) { h.bridge("np-eth1"); h.nic("eth1", "np-eth1"); h.macvlan("mgmt0", "np-eth1") }, nil, nil},
		{"an administrator's bridge", func(h *host) { h.bridge("br0"); h.nic("eth1", "br0") }, nil, nil},
		{"a tagged device", func(h *host) { h.nic("eth1", ""); h.tagged("eth1.5", "eth1", 5, true, "") }, nil, []string{"eth1.5"}},
		{"a tagged device that pods use", func(h *host) { h.nic("eth1", ""); h.tagged("eth1.5", "eth1", 5, true, "") }, []string{"eth1.5"}, nil},
		{"a tagged device with a macvlan of the host", func(h *host) {
			h.nic("eth1", "")
			h.tagged("eth1.5", "eth1", 5, true, "")
			h.macvlan("shim", "eth1.5")
		}, nil, nil},
		{"an administrator's tagged device", func(h *host) { h.nic("eth1", ""); h.tagged("eth1.5", "eth1", 5, false, "") }, nil, nil},
		{"a tagged device and its bridge", func(h *host) {
			h.nic("eth1", "")
			h.bridge("np-eth1.5")
			h.tagged("eth1.5", "eth1", 5, true, "np-eth1.5")
		}, nil, []string{"np-eth1.5", "eth1.5"}},
		{"a tagged device below a bridge in use", func(h *host) {
			h.nic("eth1", "")
			h.bridge("np-eth1.5")
			h.tagged("eth1.5", "eth1", 5, true, "np-eth1.5")
		}, []string{"np-eth1.5"}, nil},
		{"the NIC's bridge while its tag is in use", func(h *host) {
			h.bridge("np-eth1")
			h.nic("eth1", "np-eth1")
			h.tagged("eth1.5", "eth1", 5, true, "")
		}, []string{"eth1.5"}, []string{"np-eth1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := &host{}
			test.build(h)
			var got []string
			for _, l := range idle(h.all, test.used) {
				got = append(got, l.Attrs().Name)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
