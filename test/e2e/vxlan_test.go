// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// overlayMTU is what tunnels over IPv6 leave of the NICs' jumbo frames: these
// have link-local addresses only.
const overlayMTU = mtuData - 70

// TestVXLANNetworks has two Networks of plugin vxlan on one physical network
// whose NICs nobody gave an address.
func TestVXLANNetworks(t *testing.T) {
	blue := newNetwork(t, "e2e-blue", v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginVXLAN, Subnet: "10.170.0.0/24", Subnet6: "fd00:10:170::/64",
	})
	red := newNetwork(t, "e2e-red", v1alpha1.NetworkSpec{PhysicalNet: physData, Plugin: v1alpha1.PluginVXLAN, Subnet: "10.171.0.0/24"})
	for _, n := range []*v1alpha1.Network{blue, red} {
		awaitNetwork(t, n.Name, metav1.ConditionTrue, v1alpha1.ReasonReady)
	}
	bridges := []string{link.OverlayBridge(string(blue.UID)), link.OverlayBridge(string(red.UID))}
	t.Run("pods", func(t *testing.T) { vxlanPods(t, blue, red) })
	for _, node := range []string{env.node("worker"), env.node("worker3")} {
		eventually(t, time.Minute, "the segments to be gone from "+node, func() error {
			for name := range parseLinks(t, mustOnNode(t, node, "ip", "-j", "link")) {
				if slices.Contains(bridges, name) || strings.HasPrefix(name, "npx") {
					return fmt.Errorf("%s is there", name)
				}
			}
			return nil
		})
	}
}

func vxlanPods(t *testing.T, blue, red *v1alpha1.Network) {
	ns := namespace(t)
	left := run(t, newPod(ns, "left", blue.Name, on(env.node("worker"))))
	right := run(t, newPod(ns, "right", blue.Name, on(env.node("worker3"))))
	other := run(t, newPod(ns, "other", red.Name, on(env.node("worker3"))))
	checkAttached(t, left, map[string]string{"net1": blue.Name})
	checkAttached(t, right, map[string]string{"net1": blue.Name})
	b := enter(t, left)
	if got := b.links(t)["net1"].MTU; got != overlayMTU {
		t.Errorf("the interface's MTU is %d, want %d", got, overlayMTU)
	}
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", v6), func(t *testing.T) {
			to := addressIn(t, right, blue.Name, v6)
			b.mustReach(t, to, webPort, "right")
			b.mustPassWhole(t, to, overlayMTU)
		})
	}
	t.Run("isolation", func(t *testing.T) {
		// Routes there and back have it try; nothing but the segments keeps them apart.
		b.ip(t, "route", "add", string(red.Spec.Subnet), "dev", "net1")
		enter(t, other).ip(t, "route", "add", string(blue.Spec.Subnet), "dev", "net1")
		b.cannotReach(t, "net1", addressIn(t, other, red.Name, false))
	})
	t.Run("eth0", func(t *testing.T) {
		front := newPod(ns, "front", blue.Name+"@eth0", on(env.node("worker3")))
		probe := &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(webPort)}}}
		front.Spec.Containers[0].ReadinessProbe = probe
		run(t, front) // it is ready only because kubelet reaches it
		checkAttached(t, front, map[string]string{"eth0": blue.Name})
		b.mustReach(t, addressIn(t, front, blue.Name, false), webPort, "front")
	})
	t.Run("restart", func(t *testing.T) {
		killAgent(t, left.Spec.NodeName)
		b.mustReach(t, addressIn(t, right, blue.Name, true), webPort, "right")
		replaceAgent(t, left.Spec.NodeName)
		b.mustReach(t, addressIn(t, right, blue.Name, false), webPort, "right")
	})
}
