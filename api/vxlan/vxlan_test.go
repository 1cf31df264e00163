// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package vxlan

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
)

func network(uid types.UID, config string) *v1alpha1.Network {
	n := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "blue", UID: uid}, Spec: v1alpha1.NetworkSpec{Plugin: v1alpha1.PluginVXLAN}}
	if config != "" {
		n.Spec.PluginConfig = &apiextensionsv1.JSON{Raw: []byte(config)}
	}
	return n
}

func TestSettingsComeFromThePluginConfig(t *testing.T) {
	for config, want := range map[string]Settings{
		`{"vni": 42}`:                      {VNI: 42, Port: 4789},
		`{"vni": 8388607, "port": 8472}`:   {VNI: 8388607, Port: 8472},
		`{"vni": 1, "underlay": "IPv6"}`:   {VNI: 1, Port: 4789, Underlay: UnderlayIPv6},
		`{"underlay": "IPv4", "port": 1 }`: {VNI: derive("u1"), Port: 1, Underlay: UnderlayIPv4},
	} {
		got, err := SettingsOf(network("u1", config))
		if err != nil {
			t.Errorf("%s: %v", config, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", config, diff)
		}
	}
}

func TestWrongPluginConfigIsNamed(t *testing.T) {
	for config, want := range map[string]string{
		`{"vni": 0}`:         "pluginConfig.vni 0 must be from 1 to 8388607: higher ones are derived",
		`{"vni": 8388608}`:   "pluginConfig.vni 8388608 must be from 1 to 8388607: higher ones are derived",
		`{"port": 70000}`:    "pluginConfig.port 70000 must be from 1 to 65535",
		`{"underlay": "v4"}`: `pluginConfig.underlay "v4" must be IPv4 or IPv6`,
		`{"mode": "x"}`:      `pluginConfig of plugin vxlan: json: unknown field "mode"`,
		`{}{}`:               "pluginConfig of plugin vxlan must be one JSON object",
	} {
		_, err := SettingsOf(network("u1", config))
		if err == nil || err.Error() != want {
			t.Errorf("%s: error %v, want %s", config, err, want)
		}
	}
}

func TestDerivedVNIsAreStableAndNeverAnAdministrators(t *testing.T) {
	seen := map[uint32]bool{}
	for _, uid := range []types.UID{"a", "b", "c", "2f5b9a0e-6f1c-4a0b-9d7e-000000000001"} {
		first, err := SettingsOf(network(uid, ""))
		if err != nil {
			t.Fatal(err)
		}
		again, _ := SettingsOf(network(uid, `{}`))
		if first != again {
			t.Errorf("UID %s gives %v, then %v", uid, first, again)
		}
		if first.VNI <= MaxVNI || first.VNI >= 1<<24 {
			t.Errorf("UID %s gives VNI %d, which is no derived one", uid, first.VNI)
		}
		seen[first.VNI] = true
	}
	if len(seen) != 4 {
		t.Errorf("four UIDs give %d VNIs", len(seen))
	}
}

func TestSegmentsCollideByVNIAndPort(t *testing.T) {
	a := Settings{VNI: 5, Port: 4789}
	for other, want := range map[Settings]bool{
		a:                    true,
		{VNI: 5, Port: 4790}: false,
		{VNI: 6, Port: 4789}: false,
		{VNI: 5, Port: 4789, Underlay: UnderlayIPv6}: true,
	} {
		if got := a.Collides(other); got != want {
			t.Errorf("%v and %v: %t", a, other, got)
		}
	}
}

func TestTunnelAddressIsThePreferredOfTheNIC(t *testing.T) {
	for name, test := range map[string]struct {
		underlay Underlay
		have     []string
		want     string
	}{
		"IPv4 first":               {have: []string{"fe80::1", "fd00::1", "192.168.0.4", "192.168.0.1"}, want: "192.168.0.4"},
		"then IPv6":                {have: []string{"fe80::1", "fd00::2", "fd00::1"}, want: "fd00::2"},
		"then link-local":          {have: []string{"169.254.1.1", "fe80::1"}, want: "fe80::1"},
		"IPv6 if asked for":        {underlay: UnderlayIPv6, have: []string{"192.168.0.4", "fe80::1"}, want: "fe80::1"},
		"none of the family":       {underlay: UnderlayIPv4, have: []string{"fd00::1", "fe80::1"}},
		"none":                     {},
		"an IPv4 link-local is no": {have: []string{"169.254.1.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			var have []netip.Addr
			for _, text := range test.have {
				have = append(have, netip.MustParseAddr(text))
			}
			got, ok := Settings{Underlay: test.underlay}.TunnelAddress(have)
			if ok != (test.want != "") || ok && got.String() != test.want {
				t.Errorf("address %v (%t), want %q", got, ok, test.want)
			}
		})
	}
}

func TestMTULeavesRoomForTheHeaders(t *testing.T) {
	if got := MTU(1500, netip.MustParseAddr("192.168.0.1")); got != 1450 {
		t.Errorf("over IPv4 %d, want 1450", got)
	}
	if got := MTU(9000, netip.MustParseAddr("fe80::1")); got != 8930 {
		t.Errorf("over IPv6 %d, want 8930", got)
	}
}
