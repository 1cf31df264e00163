// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// overlaid makes a Network one of plugin vxlan, on a physical network of its own.
func overlaid(config string) func(*v1alpha1.Network) {
	return func(n *v1alpha1.Network) {
		n.Spec.Plugin, n.Spec.PhysicalNet = v1alpha1.PluginVXLAN, "under-"+n.Name
		n.Spec.PluginConfig = &apiextensionsv1.JSON{Raw: []byte(config)}
	}
}

func TestAVNIBelongsToTheOlderNetwork(t *testing.T) {
	blue := aNetwork("blue", overlaid(`{"vni": 42}`), madeAfter(time.Hour))
	for name, test := range map[string]struct {
		other v1alpha1.Network
		want  string
	}{
		"an older one has it":                 {aNetwork("old", overlaid(`{"vni": 42}`)), `VNIConflict: Network "old" has VNI 42 on UDP port 4789 by an older right: name another with spec.pluginConfig.vni, from 1 to 8388607`},
		"a younger one has it":                {aNetwork("new", overlaid(`{"vni": 42}`), madeAfter(2*time.Hour)), ""},
		"an older one on another port":        {aNetwork("old", overlaid(`{"vni": 42, "port": 8472}`)), ""},
		"an older one has another":            {aNetwork("old", overlaid(`{}`)), ""},
		"an older one with a wrong config":    {aNetwork("old", overlaid(`{"vni": -1}`)), ""},
		"one with an older right at its spec": {aNetwork("new", overlaid(`{"vni": 42}`), madeAfter(2*time.Hour), found(3, "True", "Ready")), `VNIConflict: Network "new" has VNI 42 on UDP port 4789 by an older right: name another with spec.pluginConfig.vni, from 1 to 8388607`},
	} {
		t.Run(name, func(t *testing.T) {
			f := facts(blue, func(f *Facts) {
				f.Overlays = []v1alpha1.Network{test.other, blue}
				f.Nodes[0].Status.PhysicalNetworks[0].Name = blue.Spec.PhysicalNet
			})
			ready := Evaluate(f).Conditions[0]
			got := ""
			if ready.Status != "True" {
				got = ready.Reason + ": " + ready.Message
			}
			if got != test.want {
				t.Errorf("condition %q, want %q", got, test.want)
			}
		})
	}
}

func TestAVXLANTakesNoTag(t *testing.T) {
	tagged := func(n *v1alpha1.Network) { n.Spec.VLAN = 5 }
	if ready := Evaluate(facts(aNetwork("blue", overlaid(`{}`), tagged))).Conditions[0]; ready.Reason != v1alpha1.ReasonUnsupportedPlugin {
		t.Errorf("reason %s: %s, want %s", ready.Reason, ready.Message, v1alpha1.ReasonUnsupportedPlugin)
	}
}

func TestAWrongPluginConfigOfAVXLANIsSaid(t *testing.T) {
	ready := Evaluate(facts(aNetwork("blue", overlaid(`{"vni": 0}`)))).Conditions[0]
	if got, want := ready.Reason+": "+ready.Message, "InvalidSpec: spec.pluginConfig.vni 0 must be from 1 to 8388607: higher ones are derived"; got != want {
		t.Errorf("condition %q, want %q", got, want)
	}
}
