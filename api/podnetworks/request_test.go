// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package podnetworks

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"sigs.k8s.io/yaml"
)

func TestParse(t *testing.T) {
	tests := map[string]struct {
		annotation string
		want       []Request
	}{
		"list": {
			"- {name: management, ifname: eth0}\n- {name: data, ifname: eth1}\n",
			[]Request{{Name: "management", IfName: "eth0"}, {Name: "data", IfName: "eth1"}},
		},
		"list in JSON": {
			`[{"name": "data", "ifname": "eth1", "ips": ["10.20.254.5", "fd00:10:20::a14:fe05"], "mac": "0a:58:0a:14:fe:05", "defaultRoute": true}]`,
			[]Request{{Name: "data", IfName: "eth1", IPs: []string{"10.20.254.5", "fd00:10:20::a14:fe05"}, MAC: "0a:58:0a:14:fe:05", DefaultRoute: true}},
		},
		"settings of its own": {
			"- {name: data, ifname: eth1, mtu: 1400, sysctls: {net.ipv4.conf.IFNAME.rp_filter: \"2\"}}",
			[]Request{{Name: "data", IfName: "eth1", MTU: 1400, Sysctls: map[string]string{"net.ipv4.conf.IFNAME.rp_filter": "2"}}},
		},
		"a sysctl's value without quotes": {
			"- {name: data, ifname: eth1, sysctls: {net.ipv4.conf.IFNAME.rp_filter: 2}}",
			[]Request{{Name: "data", IfName: "eth1", Sysctls: map[string]string{"net.ipv4.conf.IFNAME.rp_filter": "2"}}},
		},
		"short form": {
			"management@eth0,data@eth1",
			[]Request{{Name: "management", IfName: "eth0"}, {Name: "data", IfName: "eth1"}},
		},
		"short form with spaces": {
			"  management@eth0 ,\n data@eth1 \n",
			[]Request{{Name: "management", IfName: "eth0"}, {Name: "data", IfName: "eth1"}},
		},
		"interfaces without a name": {
			"management,data",
			[]Request{{Name: "management", IfName: "net1"}, {Name: "data", IfName: "net2"}},
		},
		"a name that a later item takes is passed over": {
			"management,data@net1,storage",
			[]Request{{Name: "management", IfName: "net2"}, {Name: "data", IfName: "net1"}, {Name: "storage", IfName: "net3"}},
		},
		"a network twice": {
			"data@eth1,data@eth2",
			[]Request{{Name: "data", IfName: "eth1"}, {Name: "data", IfName: "eth2"}},
		},
		"ifname of 15 characters": {
			"data@" + strings.Repeat("x", 15),
			[]Request{{Name: "data", IfName: strings.Repeat("x", 15)}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(tt.annotation)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseNamesTheOffendingItem(t *testing.T) {
	tests := map[string]struct{ annotation, want string }{
		"empty":                       {" \n", "the list is empty: name at least one network, such as management@eth0"},
		"empty list":                  {"[]", "the list is empty: name at least one network, such as management@eth0"},
		"unknown key":                 {"- {name: data, interface: eth1}", `unknown field "interface"`},
		"repeated key":                {"- {name: data, name: management}", `key "name" already set in map`},
		"no list":                     {"{name: data}", `item 1 (network "{name: data}"): the name is no DNS label: a Network's name has lower case letters, digits and '-' only`},
		"no name":                     {"- {ifname: eth1}", `item 1 (network ""): the network's name is missing`},
		"null item":                   {"[null]", `item 1 (network ""): the network's name is missing`},
		"trailing comma":              {"data@eth1,", `item 2 (network ""): the network's name is missing`},
		"upper case":                  {"Data@eth1", `item 1 (network "Data"): the name is no DNS label: a Network's name has lower case letters, digits and '-' only`},
		"trailing dash":               {"data-@eth1", `item 1 (network "data-"): the name is no DNS label: a Network's name has lower case letters, digits and '-' only`},
		"dots":                        {"data.tenant", `item 1 (network "data.tenant"): the name is no DNS label: a Network's name has lower case letters, digits and '-' only`},
		"long name":                   {strings.Repeat("a", 64), "the name has 64 characters: a Network's name has at most 63"},
		"'@' without ifname":          {"management@,data", `item 1 (network "management"): no ifname follows the '@': write one, such as management@eth1, or leave out the '@'`},
		"ifname of 16":                {"data@" + strings.Repeat("x", 16), `item 1 (network "data"): ifname "xxxxxxxxxxxxxxxx" has 16 characters: the kernel allows 15`},
		"ifname twice":                {"management@eth1,data@eth1", `item 2 (network "data"): ifname "eth1" is already used by item 1`},
		"ifname dots":                 {"data@..", `item 1 (network "data"): ifname ".." is refused by the kernel`},
		"ifname loopback":             {"data@lo", `item 1 (network "data"): ifname "lo" has a meaning of its own in every pod: choose another`},
		"ifname with slash":           {"data@eth/1", `item 1 (network "data"): ifname "eth/1" has a character that an interface's name cannot have: use letters, digits, '-', '_' and '.'`},
		"ifname with percent":         {"data@eth%d", `item 1 (network "data"): ifname "eth%d" has a character that an interface's name cannot have: use letters, digits, '-', '_' and '.'`},
		"two '@'":                     {"data@eth1@2", `ifname "eth1@2" has a character that an interface's name cannot have`},
		"two default routes":          {"- {name: a, defaultRoute: true}\n- {name: b}\n- {name: c, defaultRoute: true}", `item 3 (network "c"): defaultRoute is already asked for by item 1; a pod has one`},
		"bad address":                 {"- {name: data, ips: [10.20.254.256]}", `item 1 (network "data"): ips: "10.20.254.256" is no IP address such as 10.10.254.5`},
		"address with zone":           {`- {name: data, ips: ["fe80::1%eth1"]}`, `item 1 (network "data"): ips: "fe80::1%eth1" has a zone: write the address alone`},
		"address with a bad length":   {"- {name: data, ips: [10.20.254.5/33]}", `item 1 (network "data"): ips: "10.20.254.5/33" has no prefix length such as /24: write the address alone`},
		"three addresses":             {"- {name: data, ips: [10.20.254.5, 'fd00::1', 10.20.254.6]}", `item 1 (network "data"): ips has 3 addresses: an interface has one, and in a dual-stack network the IPv6 address that follows from it`},
		"two addresses of one family": {"- {name: data, ips: [10.20.254.5, 10.20.254.6]}", `item 1 (network "data"): ips: 10.20.254.5 and 10.20.254.6 are of one family: an interface has one address of each`},
		"sticky with a reference":     {"- {name: data, sticky: true, ipam-claim-reference: vm-1}", `item 1 (network "data"): sticky and ipam-claim-reference exclude each other`},
		"a reference twice":           {"- {name: data, ipam-claim-reference: vm-1}\n- {name: data, ipam-claim-reference: vm-1}", `item 2 (network "data"): its fixed address is already asked for by item 1`},
		"a fixed address twice":       {"- {name: data, ips: [10.20.254.5/24]}\n- {name: data, ips: [10.20.254.5], sticky: true}", `item 2 (network "data"): its fixed address is already asked for by item 1`},
		"reference no object has":     {"- {name: data, ipam-claim-reference: VM_1}", `item 1 (network "data"): ipam-claim-reference: "VM_1" is no name such as vm-1`},
		"long reference":              {"- {name: data, ipam-claim-reference: " + strings.Repeat("a", 254) + "}", `item 1 (network "data"): ipam-claim-reference has 254 characters: a name has at most 253`},
		"bad MAC":                     {"- {name: data, mac: '0a:58'}", `item 1 (network "data"): mac: "0a:58" is no MAC address such as 0a:58:0a:0a:00:05`},
		"InfiniBand MAC":              {"- {name: data, mac: '02-00-5e-10-00-00-00-01'}", `item 1 (network "data"): mac: "02-00-5e-10-00-00-00-01" is no MAC address`},
		"multicast MAC":               {"- {name: data, mac: '01:00:5e:00:00:01'}", `mac: "01:00:5e:00:00:01" is a multicast address: its first octet must be even`},
		"zero MAC":                    {"- {name: data, mac: '00:00:00:00:00:00'}", `mac: "00:00:00:00:00:00" is all zeros, which the kernel refuses`},
		"tiny MTU":                    {"- {name: data, mtu: 575}", `item 1 (network "data"): mtu: 575 is none: write one from 576 to 65535`},
		"negative MTU":                {"- {name: data, mtu: -1}", "mtu: -1 is none"},
		"sysctl of the pod":           {"- {name: data, sysctls: {net.ipv4.ip_forward: '1'}}", `item 1 (network "data"): sysctls: "net.ipv4.ip_forward" is no setting of one interface: write net.ipv4.conf.IFNAME.x`},
		"sysctl of all interfaces":    {"- {name: data, sysctls: {net.ipv4.conf.all.rp_filter: '0'}}", `sysctls: "net.ipv4.conf.all.rp_filter" is no setting of one interface`},
		"sysctl that leads elsewhere": {"- {name: data, sysctls: {net.ipv4.conf.IFNAME.../all/rp_filter: '0'}}", "is no setting of one interface"},
		"sysctl with two lines":       {`[{"name": "data", "sysctls": {"net.ipv4.conf.IFNAME.rp_filter": "1\n2"}}]`, `sysctls: "1\n2" is no value of net.ipv4.conf.IFNAME.rp_filter`},
		"too many":                    {strings.Repeat("data,", 32) + "data", "33 networks are more than the 32 that a pod may have"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(tt.annotation)
			if err == nil {
				t.Fatalf("accepted as %+v", got)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("message %q, want in it %q", err, tt.want)
			}
		})
	}
}

func TestDemandCountsPerNetworkWithoutFixedAddresses(t *testing.T) {
	requests := []Request{{Name: "data"}, {Name: "data"}, {Name: "management"}, {Name: "management", IPs: []string{"10.10.254.5"}}, {Name: "storage", IPs: []string{"10.30.254.5"}},
		{Name: "storage", Sticky: true}, {Name: "storage", IPAMClaimReference: "vm-1"}}
	if diff := cmp.Diff(map[string]int{"data": 2, "management": 1}, Demand(requests)); diff != "" {
		t.Errorf("demand (-want +got):\n%s", diff)
	}
}

func TestPrimaryIsTheRequestForEth0(t *testing.T) {
	requests := []Request{{Name: "data", IfName: "eth1"}, {Name: "management", IfName: "eth0"}}
	if got := Primary(requests); got != &requests[1] {
		t.Errorf("primary %+v, want management", got)
	}
	if got := Primary(requests[:1]); got != nil {
		t.Errorf("primary %+v of a pod that keeps its default network", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"management@eth0,data@eth1", "management,data@net1,storage", "- {name: data, ifname: eth1, ips: [10.20.254.5], defaultRoute: true}",
		`[{"name":"data","mac":"0a:58:0a:0a:00:05"}]`, "- &a {name: data}\n- *a", "", "@", "[null]", "- name: 5\n  ifname: 0x10",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, annotation string) {
		requests, err := Parse(annotation)
		if err != nil {
			return
		}
		text, err := yaml.Marshal(requests)
		if err != nil {
			t.Fatalf("writing %+v: %v", requests, err)
		}
		again, err := Parse(string(text))
		if err != nil {
			t.Fatalf("%q was accepted, but written again as %q is refused: %v", annotation, text, err)
		}
		if diff := cmp.Diff(requests, again, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q changes when written again (-first +second):\n%s", annotation, diff)
		}
		seen := map[string]bool{}
		for _, r := range requests {
			if r.IfName == "" || len(r.IfName) > 15 || seen[r.IfName] {
				t.Errorf("%q gives the interface name %q", annotation, r.IfName)
			}
			seen[r.IfName] = true
		}
	})
}

func TestFixedAddressesAreWrittenOneWay(t *testing.T) {
	got, err := Parse("- {name: data, ips: ['fd00:10:20:0::a14:fe05/64', '10.20.254.5/24']}\n- {name: web, sticky: true}\n- {name: vm, ipam-claim-reference: vm-1.pool}\n- {name: web}")
	if err != nil {
		t.Fatal(err)
	}
	want := []Request{
		{Name: "data", IfName: "net1", IPs: []string{"fd00:10:20::a14:fe05", "10.20.254.5"}},
		{Name: "web", IfName: "net2", Sticky: true},
		{Name: "vm", IfName: "net3", IPAMClaimReference: "vm-1.pool"},
		{Name: "web", IfName: "net4"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	for i, fixed := range []bool{true, true, true, false} {
		if got[i].Fixed() != fixed {
			t.Errorf("%s on %s: fixed %t, want %t", got[i].Name, got[i].IfName, !fixed, fixed)
		}
	}
}
