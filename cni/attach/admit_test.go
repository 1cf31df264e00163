// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/wire"
)

func TestAdmitSaysWhyAPodCannotHaveANetwork(t *testing.T) {
	for name, test := range map[string]struct {
		annotation string
		change     func(w *world, n *v1alpha1.Network)
		want       string
		code       uint
	}{
		"bad annotation":  {"data@a,data@a", nil, `annotation netplane.io/networks: item 2 (network "data"): ifname "a" is already used by item 1`, 7},
		"unknown network": {"nowhere", nil, `network "nowhere" does not exist`, 11},
		"no free address": {"full", nil, `network "full" has no free address on this node`, 11},
		"no gateway":      {"- {name: data, defaultRoute: true}", nil, `network "data" has no gateway, which defaultRoute on net1 needs`, 7},
		"being deleted":   {"data", func(_ *world, n *v1alpha1.Network) { now := metav1.Now(); n.DeletionTimestamp = &now }, `network "data" is being deleted and takes no new pods`, 11},
		"not looked at":   {"data", func(_ *world, n *v1alpha1.Network) { n.Generation++ }, `network "data" is not ready: netplane-controller has not looked at its present spec yet`, 11},
		"not ready": {"data", func(_ *world, n *v1alpha1.Network) {
			n.Status.Conditions[0].Status, n.Status.Conditions[0].Reason, n.Status.Conditions[0].Message = metav1.ConditionFalse, v1alpha1.ReasonSubnetOverlap, "it overlaps"
		}, `network "data" is not ready: SubnetOverlap: it overlaps`, 11},
		"option of another plugin": {"data", func(_ *world, n *v1alpha1.Network) {
			n.Spec.PluginConfig = &apiextensionsv1.JSON{Raw: []byte(`{"mode": "l2"}`)}
		}, `network "data": pluginConfig.mode: plugin bridge has no such key: remove it, or write one of isolated, spoofCheck`, 7},
		"MAC on ipvlan": {"- {name: data, mac: 02:00:00:00:00:01}", func(_ *world, n *v1alpha1.Network) { n.Spec.Plugin = "ipvlan" }, `network "data": interfaces of plugin ipvlan have the NIC's MAC address: ask for none`, 7},
		"other namespaces": {"data", func(_ *world, n *v1alpha1.Network) {
			n.Spec.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "b"}}
		}, `namespace "default" may not use network "data": its labels do not match the network's namespaceSelector`, 11},
		"unknown namespace": {"data", func(w *world, n *v1alpha1.Network) {
			n.Spec.NamespaceSelector, w.namespaces = &metav1.LabelSelector{}, nil
		}, `namespace "default" is not known to the agent yet`, 11},
		"refused by the node": {"data", func(w *world, _ *v1alpha1.Network) { w.refused["data"] = "NIC eth1 carries macvlans" }, `this node cannot serve network "data": NIC eth1 carries macvlans`, 11},
		"no NIC":              {"data", func(w *world, _ *v1alpha1.Network) { w.parents = nil }, `no NIC of this node backs physical network "phy-net0" of network "data"`, 11},
		"MTU above the NIC's": {"data", func(_ *world, n *v1alpha1.Network) { n.Spec.MTU = 9000 }, `mtu 9000 of network "data" is larger than the 1500 of NIC eth1`, 11},
		"NIC in another mode": {"data", func(w *world, _ *v1alpha1.Network) { w.bridged = nil }, `network "data": NIC eth1 is not in bridge mode`, 11},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if test.change != nil {
				test.change(w, w.networks["data"])
			}
			err := w.add(t.Context(), "c1", test.annotation)
			var known *wire.Error
			if !errors.As(err, &known) || !strings.Contains(known.Msg, test.want) || known.Code != test.code {
				t.Errorf("got %v", err)
			}
			if len(w.leases) > 0 || len(w.files(t)) > 0 {
				t.Errorf("left: %v %v", w.leases, w.files(t))
			}
		})
	}
}
