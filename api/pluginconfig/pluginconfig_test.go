// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package pluginconfig

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

func spec(plugin, config string) *v1alpha1.NetworkSpec {
	out := &v1alpha1.NetworkSpec{Plugin: plugin}
	if config != "" {
		out.PluginConfig = &apiextensionsv1.JSON{Raw: []byte(config)}
	}
	return out
}

func TestOptionsOfEachPlugin(t *testing.T) {
	for _, test := range []struct {
		plugin, config string
		want           Options
		refusal        string
	}{
		{plugin: "macvlan"},
		{plugin: "macvlan", config: "null"},
		{plugin: "macvlan", config: "{}"},
		{plugin: "macvlan", config: `{"mode": "private"}`, want: Options{Mode: "private"}},
		{plugin: "ipvlan", config: `{"mode": "l3"}`, want: Options{Mode: "l3"}},
		{plugin: "bridge", config: `{"isolated": true, "spoofCheck": false}`, want: Options{Isolated: true}},
		{plugin: "bridge", config: `{"spoofCheck": true}`, want: Options{SpoofCheck: true}},
		{plugin: "macvlan", config: `{"mode": "l2"}`, refusal: `pluginConfig.mode: "l2" is no mode of plugin macvlan: write one of bridge, vepa, private, passthru`},
		{plugin: "ipvlan", config: `{"mode": null}`, refusal: `pluginConfig.mode: null is no mode of plugin ipvlan: write one of l2, l3`},
		{plugin: "ipvlan", config: `{"mode": 3}`, refusal: `pluginConfig.mode: 3 is no mode of plugin ipvlan: write one of l2, l3`},
		{plugin: "ipvlan", config: `{"Mode": "l2"}`, refusal: `pluginConfig.Mode: plugin ipvlan has no such key: remove it, or write one of mode`},
		{plugin: "bridge", config: `{"isGateway": true, "isolated": true}`, refusal: `pluginConfig.isGateway: plugin bridge has no such key: remove it, or write one of isolated, spoofCheck`},
		{plugin: "bridge", config: `{"isolated": "yes"}`, refusal: `pluginConfig.isolated: "yes" is neither true nor false`},
		{plugin: "bridge", config: `{"spoofCheck": null}`, refusal: `pluginConfig.spoofCheck: null is neither true nor false`},
		{plugin: "bridge", config: `[]`, refusal: `pluginConfig must be an object with the keys of plugin bridge: isolated, spoofCheck`},
		{plugin: "host-device", config: `{}`},
		{plugin: "host-device", config: `{"device": "eth1"}`, refusal: `pluginConfig.device: plugin host-device has no options: remove it`},
		{plugin: "Flannel", config: `{"anything": ["goes"]}`},
	} {
		t.Run(test.plugin+" "+test.config, func(t *testing.T) {
			got, err := Of(spec(test.plugin, test.config))
			if err != nil {
				if diff := cmp.Diff(test.refusal, err.Error()); diff != "" {
					t.Error(diff)
				}
				return
			}
			if diff := cmp.Diff(test.want, got); diff != "" || test.refusal != "" {
				t.Errorf("accepted, want %q: %s", test.refusal, diff)
			}
		})
	}
}

func TestSettingsThatPodsMayAskFor(t *testing.T) {
	const rpFilter, proxyARP = "net.ipv4.conf.IFNAME.rp_filter", "net.ipv4.conf.IFNAME.proxy_arp"
	network := func(edit func(*v1alpha1.NetworkSpec)) *v1alpha1.NetworkSpec {
		out := spec(v1alpha1.PluginMacvlan, "")
		out.Subnet, out.AllowedSysctls = "10.20.0.0/16", []v1alpha1.SysctlName{rpFilter}
		edit(out)
		return out
	}
	any := network(func(*v1alpha1.NetworkSpec) {})
	dual := network(func(s *v1alpha1.NetworkSpec) { s.Subnet6 = "fd00::/64" })
	delegate := network(func(s *v1alpha1.NetworkSpec) { s.Plugin = "canal" })
	for _, test := range []struct {
		name    string
		spec    *v1alpha1.NetworkSpec
		request podnetworks.Request
		want    string
	}{
		{"nothing", delegate, podnetworks.Request{}, ""},
		{"an MTU", any, podnetworks.Request{MTU: 600}, ""},
		{"an MTU as large as the network's", network(func(s *v1alpha1.NetworkSpec) { s.MTU = 1400 }), podnetworks.Request{MTU: 1400}, ""},
		{"a larger one", network(func(s *v1alpha1.NetworkSpec) { s.MTU = 1400 }), podnetworks.Request{MTU: 1401}, `network "data": mtu 1401 is larger than the network's 1400`},
		{"one too small for IPv6", dual, podnetworks.Request{MTU: 1279}, `network "data": mtu 1279 is too small for IPv6, which the network has: write 1280 or more`},
		{"one too small for IPv6 alone", network(func(s *v1alpha1.NetworkSpec) { s.Subnet = "fd00::/64" }), podnetworks.Request{MTU: 1279}, `network "data": mtu 1279 is too small for IPv6, which the network has: write 1280 or more`},
		{"one that is not", dual, podnetworks.Request{MTU: 1280}, ""},
		{"an allowed sysctl", any, podnetworks.Request{Sysctls: map[string]string{rpFilter: "2"}}, ""},
		{"another", any, podnetworks.Request{Sysctls: map[string]string{rpFilter: "2", proxyARP: "1"}}, `network "data": sysctl net.ipv4.conf.IFNAME.proxy_arp is not in the network's allowedSysctls`},
		{"an MTU of a delegate", delegate, podnetworks.Request{MTU: 1400}, `network "data": plugin canal is not built in, and is told of no mtu or sysctls of pods: write them into the Network's pluginConfig`},
		{"a sysctl of a delegate", delegate, podnetworks.Request{Sysctls: map[string]string{rpFilter: "2"}}, `network "data": plugin canal is not built in, and is told of no mtu or sysctls of pods: write them into the Network's pluginConfig`},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.request.Name, test.request.IfName = "data", "net1"
			if diff := cmp.Diff(test.want, Refuses(test.spec, &test.request)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhatPodsMayNotAskForWhereTheNICsMACIsShared(t *testing.T) {
	for _, test := range []struct {
		name    string
		spec    *v1alpha1.NetworkSpec
		request podnetworks.Request
		want    string
	}{
		{"ipvlan", spec("ipvlan", ""), podnetworks.Request{IfName: "net1"}, ""},
		{"ipvlan with a MAC", spec("ipvlan", ""), podnetworks.Request{IfName: "net1", MAC: "0a:00:00:00:00:01"}, `network "data": interfaces of plugin ipvlan have the NIC's MAC address: ask for none`},
		{"ipvlan on eth0", spec("ipvlan", ""), podnetworks.Request{IfName: "eth0"}, `network "data": interfaces of plugin ipvlan cannot be eth0, as the node itself would not reach the pod: choose another interface name, or a Network of plugin macvlan or bridge`},
		{"passthru with a MAC", spec("macvlan", `{"mode": "passthru"}`), podnetworks.Request{IfName: "net1", MAC: "0a:00:00:00:00:01"}, `network "data": interfaces of plugin macvlan in mode passthru have the NIC's MAC address: ask for none`},
		{"macvlan", spec("macvlan", `{"mode": "vepa"}`), podnetworks.Request{IfName: "eth0", MAC: "0a:00:00:00:00:01"}, ""},
		{"private on eth0", spec("macvlan", `{"mode": "private"}`), podnetworks.Request{IfName: "eth0"}, `network "data": interfaces of plugin macvlan in mode private cannot be eth0, as the node itself would not reach the pod: choose another interface name, or a Network of another mode`},
		{"private beside eth0", spec("macvlan", `{"mode": "private"}`), podnetworks.Request{IfName: "net1"}, ""},
		{"a delegate", spec("ipvlan-of-mine", `{"mode": "l2"}`), podnetworks.Request{IfName: "eth0", MAC: "0a:00:00:00:00:01"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.request.Name = "data"
			if diff := cmp.Diff(test.want, Refuses(test.spec, &test.request)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
