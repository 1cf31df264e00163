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
