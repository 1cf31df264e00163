// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/program"
)

// TestClusterIPsInPods has the agent, with its own rights, follow Services for the
// pods that are on a Network with serviceProxy InPod, and for no other reason.
func TestClusterIPsInPods(t *testing.T) {
	w := newWorld(t)
	w.network("calls", v1alpha1.NetworkSpec{PhysicalNet: "phy-net1", Plugin: v1alpha1.PluginBridge, Subnet: "10.80.0.0/24", ServiceProxy: v1alpha1.ServiceProxyInPod})
	w.create(newService("sip", "calls"))
	w.publish("sip", "calls", "10.80.0.5", "10.80.0.6")
	w.publish("sip", "data", "10.20.0.5") // of another network: nothing to us
	w.startAgent()

	plain := w.newSandbox("plain", "data")
	_, err := w.add(plain)
	w.must(err)
	w.wantFollowed(map[string]int{})

	pod := w.newSandbox("caller", "calls")
	_, err = w.add(pod)
	w.must(err)
	if err := w.wantBackends(pod, "10.80.0.5:5060", "10.80.0.6:5060"); err != nil {
		t.Errorf("after the ADD: %v", err)
	}
	if err := w.wantBackends(plain); err != nil {
		t.Errorf("a pod that is not on the network: %v", err)
	}
	w.wantFollowed(map[string]int{"EndpointSlice": 1, "Service": 2}) // and the Service kubernetes

	w.publish("sip", "calls", "10.80.0.6", "10.80.0.7")
	w.await("the rules to follow the slices", func() error { return w.wantBackends(pod, "10.80.0.6:5060", "10.80.0.7:5060") })

	t.Run("a restarted agent goes on", func(t *testing.T) {
		w.must(w.process.Process.Kill())
		<-w.ended //nolint:errcheck // it was killed: how it ended says nothing
		w.publish("sip", "calls", "10.80.0.8")
		if err := w.wantBackends(pod, "10.80.0.6:5060", "10.80.0.7:5060"); err != nil {
			t.Errorf("without an agent: %v", err)
		}
		w.startAgent()
		w.await("the rules to follow the slices", func() error { return w.wantBackends(pod, "10.80.0.8:5060") })
	})
	t.Run("a pod that is plugged in gets rules, and loses them", func(*testing.T) {
		w.ask(plain, "data,calls")
		w.await("the rules of the new interface", func() error { return w.wantBackends(plain, "10.80.0.8:5060") })
		w.ask(plain, "data")
		w.await("no rules to be left", func() error { return w.wantBackends(plain) })
	})
	t.Run("the Network can turn it off and on", func(*testing.T) {
		w.proxy("calls", v1alpha1.ServiceProxyNone)
		w.await("no rules to be left", func() error { return w.wantBackends(pod) })
		w.await("no watch to be left", func() error { return w.followed(map[string]int{}) })
		w.proxy("calls", v1alpha1.ServiceProxyInPod)
		w.await("the rules to be back", func() error { return w.wantBackends(pod, "10.80.0.8:5060") })
	})
	w.must(w.del(pod))
	w.await("the watches to end with the last pod", func() error { return w.followed(map[string]int{}) })
	if strings.Contains(w.log.String(), "is forbidden") {
		t.Errorf("the service account lacks a right:\n%s", w.log)
	}
}

func newService(name, networks string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{v1alpha1.AnnotationNetworks: networks}},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name, v1alpha1.SelectorEndpointsKey: v1alpha1.SelectorEndpointsByNetwork},
			Ports:    []corev1.ServicePort{{Name: "sip", Port: 80, Protocol: corev1.ProtocolUDP}},
		},
	}
}

// publish does what netplane-controller does for pods with these addresses.
func (w *world) publish(service, network string, addresses ...string) {
	w.Helper()
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service + "-" + network, Labels: map[string]string{
			discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: v1alpha1.EndpointSliceManagedBy, v1alpha1.LabelNetwork: network,
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("sip"), Port: ptr.To[int32](5060), Protocol: ptr.To(corev1.ProtocolUDP)}},
	}
	for _, address := range addresses {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}})
	}
	if err := w.client.Create(w.Context(), slice); err != nil {
		w.must(w.client.Update(w.Context(), slice))
	}
}

func (w *world) proxy(network string, value v1alpha1.ServiceProxy) {
	w.Helper()
	var n v1alpha1.Network
	w.must(w.client.Get(w.Context(), client.ObjectKey{Name: network}, &n))
	n.Spec.ServiceProxy = value
	w.must(w.client.Update(w.Context(), &n))
}

// wantBackends compares the backends in a pod's rules.
func (w *world) wantBackends(s *sandbox, want ...string) error {
	ns, err := netns.GetFromPath(s.netns)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "netplane"}
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == table.Name }) {
		if len(want) > 0 {
			return fmt.Errorf("there is no table among %d", len(tables))
		}
		return nil
	}
	slots, err := conn.GetSetElements(&nftables.Set{Table: table, Name: "ipv4-slots"})
	if err != nil {
		return err
	}
	var got []string
	for _, slot := range slots {
		address, _ := netip.AddrFromSlice(slot.Val[:4])
		got = append(got, fmt.Sprintf("%s:%d", address, int(slot.Val[4])<<8|int(slot.Val[5])))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("backends %v, want %v", got, want)
	}
	return nil
}

func (w *world) wantFollowed(want map[string]int) {
	w.Helper()
	if err := w.followed(want); err != nil {
		w.Error(err)
	}
}

// followed compares how many objects the agent holds of the kinds that only this
// needs.
func (w *world) followed(want map[string]int) error {
	text, err := program.Fetch(w.metrics, "/metrics")
	if err != nil {
		return err
	}
	for _, kind := range []string{"EndpointSlice", "Service"} {
		name := fmt.Sprintf("netplane_agent_cached_objects{kind=%q} ", kind)
		_, rest, found := strings.Cut(text, name)
		value, _, _ := strings.Cut(rest, "\n")
		if found != (want[kind] > 0) || found && value != fmt.Sprint(want[kind]) {
			return fmt.Errorf("%s%q, want %d", name, value, want[kind])
		}
	}
	return nil
}
