// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	current "github.com/containernetworking/cni/pkg/types/100"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/pluginconfig"
	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/delegate"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// wanted is one interface that a pod asks for and may have on this node.
type wanted struct {
	request podnetworks.Request
	network *v1alpha1.Network
	plan    *addressing.Plan
	// nic is the NIC that backs it, bridged that it is a bridge's port.
	nic     string
	bridged bool
	// overlay is the bridge of a Network of plugin vxlan, which may not exist yet.
	overlay string
	mtu     int
	// exclusive is the NIC itself, if the pod gets it whole.
	exclusive *link.NIC
	options   pluginconfig.Options
	// fixed is the address that an IPClaim gives the pod, if it asks for one.
	fixed netip.Addr
	lease ipam.Lease
	// conf is by what another plugin makes the interface, and result its answer;
	// nil for the kinds that netplane makes itself. plan is nil where such a
	// plugin gives the addresses, too.
	conf   *delegate.Conf
	result *current.Result
	// found is what the interface itself says, if the result does not.
	found link.Adopted
	// device is what that plugin said of the device behind the interface.
	device json.RawMessage
	// runtimeConfig is what such a plugin is given beside the MAC address.
	runtimeConfig map[string]json.RawMessage
	// hops are the routers of the pod's default routes, if a selection names them.
	hops []netip.Addr
}

func retry(format string, args ...any) error {
	return &wire.Error{Code: wire.CodeTryAgain, Msg: fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) error {
	return &wire.Error{Code: wire.CodeInvalidConfig, Msg: fmt.Sprintf(format, args...)}
}

// admitBoth admits what a pod asks for in either way.
func (s *Server) admitBoth(ctx context.Context, sandbox *wire.Sandbox, annotation string, npwg *wire.NPWG) (all []wanted, err error) {
	if strings.TrimSpace(annotation) != "" || npwg == nil {
		if all, err = s.admit(sandbox, annotation); err != nil {
			return nil, err
		}
	}
	selected, err := s.selected(ctx, sandbox, npwg, all)
	return append(all, selected...), err
}

// admit checks everything that can be known before an address is taken and a
// link is made: the scheduler looked at the same facts, but they may have
// changed since, and a pod can be bound without it.
func (s *Server) admit(sandbox *wire.Sandbox, annotation string) ([]wanted, error) {
	requests, err := podnetworks.Parse(annotation)
	if err != nil {
		return nil, invalid("annotation %s: %v", v1alpha1.AnnotationNetworks, err)
	}
	return s.admitAll(sandbox, requests)
}

// admitAll is admit for what an annotation was read as.
func (s *Server) admitAll(sandbox *wire.Sandbox, requests []podnetworks.Request) ([]wanted, error) {
	topology := s.deps.Topology()
	out := make([]wanted, 0, len(requests))
	for i := range requests {
		network, ok := s.deps.Networks.Get(requests[i].Name)
		if !ok {
			return nil, retry("network %q does not exist", requests[i].Name)
		}
		w := wanted{request: requests[i], network: network}
		if err := w.checkRequest(); err != nil {
			return nil, err
		}
		if err := w.checkNetwork(); err != nil {
			return nil, err
		}
		if err := s.checkNamespace(network, sandbox.PodNamespace); err != nil {
			return nil, err
		}
		var err error
		switch {
		case network.Spec.Delegated():
			err = s.findDelegate(&w, topology)
		case takesNIC(network):
			err = s.takeNIC(&w, topology, sandbox.ContainerID)
		default:
			err = w.chooseNIC(topology, s.deps.Parents.MTU)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return out, nil
}

func (w *wanted) checkRequest() error {
	if w.request.MAC == "" {
		return nil
	}
	mac, err := net.ParseMAC(w.request.MAC)
	if err != nil {
		return invalid("network %q: mac %q: %v", w.request.Name, w.request.MAC, err)
	}
	w.request.MAC = mac.String()
	return nil
}

func (w *wanted) checkNetwork() error {
	n := w.network
	if n.DeletionTimestamp != nil {
		return retry("network %q is being deleted and takes no new pods", n.Name)
	}
	ready := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case ready == nil || ready.ObservedGeneration != n.Generation:
		return retry("network %q is not ready: netplane-controller has not looked at its present spec yet", n.Name)
	case ready.Status != metav1.ConditionTrue:
		return retry("network %q is not ready: %s: %s", n.Name, ready.Reason, ready.Message)
	case !n.Spec.Delegated() && !serves(n.Spec.Plugin) && !takesNIC(n):
		return invalid("network %q: this release makes no interfaces of plugin %s", n.Name, n.Spec.Plugin)
	}
	options, err := pluginconfig.Of(&n.Spec)
	if err != nil {
		return invalid("network %q: %v", n.Name, err)
	}
	w.options = options
	if message := pluginconfig.Refuses(&n.Spec, &w.request); message != "" {
		return invalid("%s", message)
	}
	plan, err := addressing.NewPlan(n.Name, &n.Spec)
	if n.Spec.Delegated() && errors.Is(err, addressing.ErrNoSubnet) {
		return nil
	}
	if err != nil {
		return invalid("network %q: %v", n.Name, err)
	}
	w.plan = plan
	if gateway, gateway6 := plan.Gateway(); w.request.DefaultRoute && !n.Spec.Delegated() && w.request.IfName != podnetworks.PrimaryInterface && !gateway.IsValid() && !gateway6.IsValid() {
		return invalid("network %q has no gateway, which defaultRoute on %s needs", n.Name, w.request.IfName)
	}
	return nil
}

func serves(plugin string) bool {
	switch plugin {
	case v1alpha1.PluginMacvlan, v1alpha1.PluginBridge, v1alpha1.PluginIPVLAN, v1alpha1.PluginVXLAN:
		return true
	}
	return false
}

// sharesMAC: the interface has the address of what it stands on.
func (w *wanted) sharesMAC() bool { return pluginconfig.SharesMAC(w.network.Spec.Plugin, w.options) }

func (s *Server) checkNamespace(n *v1alpha1.Network, namespace string) error {
	if n.Spec.NamespaceSelector == nil {
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(n.Spec.NamespaceSelector)
	if err != nil {
		return invalid("network %q: namespaceSelector: %v", n.Name, err)
	}
	has, ok := s.deps.Namespaces.Labels(namespace)
	if !ok {
		return retry("namespace %q is not known to the agent yet", namespace)
	}
	if !selector.Matches(labels.Set(has)) {
		return retry("namespace %q may not use network %q: its labels do not match the network's namespaceSelector", namespace, n.Name)
	}
	return nil
}

// chooseNIC takes the first NIC, those that are up first, that can serve the
// Network: a NIC with macvlans on it takes no bridge.
func (w *wanted) chooseNIC(topology Topology, mtuOf func(string) (int, error)) error {
	n := w.network
	if _, message, refused := topology.Refusal(n.Name); refused {
		return retry("this node cannot serve network %q: %s", n.Name, message)
	}
	if n.Spec.Plugin == v1alpha1.PluginVXLAN {
		return w.chooseTunnel(topology)
	}
	var reason error
	for _, nic := range topology.Parents(n.Spec.PhysicalNet) {
		bridged, refusal := topology.Bridged(nic, n)
		if refusal != "" {
			reason = retry("network %q: %s", n.Name, refusal)
			continue
		}
		mtu, err := mtuOf(nic)
		if err != nil {
			reason = retry("network %q: %v", n.Name, err)
			continue
		}
		if int(n.Spec.MTU) > mtu {
			reason = retry("mtu %d of network %q is larger than the %d of NIC %s", n.Spec.MTU, n.Name, mtu, nic)
			continue
		}
		w.nic, w.bridged, w.mtu = nic, bridged, mtu
		if n.Spec.MTU > 0 {
			w.mtu = int(n.Spec.MTU)
		}
		return nil
	}
	if reason == nil {
		reason = retry("no NIC of this node backs physical network %q of network %q", n.Spec.PhysicalNet, n.Name)
	}
	return reason
}

// nodeAddresses are the node's own addresses beside the pod's.
func (w *wanted) nodeAddresses() []netip.Addr {
	if !w.lease.Block.IsValid() {
		return nil // a fixed address beside eth0 has no need of the node's
	}
	own := w.lease.Node
	if !own.IsValid() { // recorded by an earlier version
		var ok bool
		if own, ok = w.plan.NodeAddress(w.lease.Block); !ok {
			return nil
		}
	}
	var out []netip.Addr
	for _, prefix := range w.plan.Interface(own) {
		out = append(out, prefix.Addr())
	}
	return out
}
