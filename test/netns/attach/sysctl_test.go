// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/cni/link"
)

func (s *space) setting(t *testing.T, path string) string {
	t.Helper()
	var raw []byte
	must(t, s.in(func() (err error) {
		raw, err = os.ReadFile("/proc/sys/net/" + path)
		return err
	}))
	return strings.TrimSpace(string(raw))
}

func TestInterfacesHaveTheSettingsOfTheirNetwork(t *testing.T) {
	node, pod := wired(t, "node")[0], newSpace(t, "pod")
	links, spec := openLinks(t, node), specOf(link.KindMacvlan, "net.1", "5") // a dot in the name
	spec.Sysctls = []link.Sysctl{{Name: "net.ipv4.conf.IFNAME.rp_filter", Value: "2"}, {Name: "net.ipv6.neigh.IFNAME.base_reachable_time_ms", Value: "61000"}, {Name: "net.ipv4.conf.IFNAME.arp_notify", Value: "0"}}
	host := node.setting(t, "ipv4/conf/eth1/rp_filter")
	must(t, links.Add(t.Context(), pod.path, spec))
	must(t, links.Announce(t.Context(), pod.path, spec))
	must(t, links.Check(t.Context(), pod.path, spec))
	got := []string{
		pod.setting(t, "ipv4/conf/net.1/rp_filter"), pod.setting(t, "ipv6/neigh/net.1/base_reachable_time_ms"), pod.setting(t, "ipv4/conf/net.1/arp_notify"),
		pod.setting(t, "ipv4/conf/all/rp_filter"), node.setting(t, "ipv4/conf/eth1/rp_filter"),
	}
	if diff := cmp.Diff([]string{"2", "61000", "0", "0", host}, got); diff != "" {
		t.Error(diff)
	}
	pod.sysctl(t, "ipv4/conf/net.1/rp_filter", "0")
	err := links.Check(t.Context(), pod.path, spec)
	if want := "interface net.1 has net.ipv4.conf.IFNAME.rp_filter 0, not 2"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestSettingsThatCannotBeMadeLeaveNothing(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.conf.IFNAME.no_such_thing": "configuring net1: setting net/ipv4/conf/net1/no_such_thing to 1",
		"net.ipv4.ip_forward":                "sysctl net.ipv4.ip_forward is none of an interface",
		"net.ipv4.conf.all.rp_filter":        "sysctl net.ipv4.conf.all.rp_filter is none of an interface",
		"kernel.ipv4.conf.IFNAME.panic":      "is none of an interface",
		"net.ipv4.conf.IFNAME.../x":          "is none of an interface",
	} {
		t.Run(name, func(t *testing.T) {
			node, pod := wired(t, "node")[0], newSpace(t, "pod")
			links, spec := openLinks(t, node), specOf(link.KindMacvlan, "net1", "5")
			spec.Sysctls = []link.Sysctl{{Name: name, Value: "1"}}
			if err := links.Add(t.Context(), pod.path, spec); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			if left := pod.links(t); len(left) > 0 {
				t.Errorf("left in the pod: %v", left)
			}
		})
	}
}
