// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/pluginconfig"
	"github.com/netplane/netplane/api/v1alpha1"
)

// shownPods bounds the pods that a message names.
const shownPods = 3

// Facts is all that decides a Network's status.
type Facts struct {
	Network *v1alpha1.Network
	// PhysicalNetworkExists: the PhysicalNetwork that spec names is there.
	PhysicalNetworkExists bool
	// Siblings are the Networks on the same physical network; the Network
	// itself may be among them.
	Siblings []v1alpha1.Network
	// Overlays are the Networks of plugin vxlan, on whichever physical network;
	// the Network itself may be among them.
	Overlays []v1alpha1.Network
	// Nodes are the NodeNetworks that map a NIC to the physical network.
	Nodes []v1alpha1.NodeNetwork
	// Holders are the NodeNetworks that hold addresses of the Network.
	Holders []v1alpha1.NodeNetwork
	// Blocks are the IPBlocks that bear the Network's name.
	Blocks []v1alpha1.IPBlock
	// Claims are the IPClaims that bear the Network's name.
	Claims []v1alpha1.IPClaim
	// Pods are living pods bound to a node that ask for the Network.
	Pods []corev1.Pod
}

// Evaluate computes a Network's whole status. Conditions carry no
// LastTransitionTime; whoever publishes them knows the clock.
//
// Ready is False with reason NoNode only when no node maps a NIC to the
// physical network. When NICs are mapped but all of them are down, the Network
// stays Ready and nodes.ready is 0: the scheduler then rejects each node with
// the reason that names network and NIC, which helps more than one sentence
// about the Network, and the pod wakes by the NodeNetwork's own event.
func Evaluate(f *Facts) v1alpha1.NetworkStatus {
	plan, planErr := addressing.NewPlan(f.Network.Name, &f.Network.Spec)
	status := v1alpha1.NetworkStatus{
		ObservedGeneration: f.Network.Generation,
		Nodes:              CountNodes(f.Network.Spec.PhysicalNet, f.Network.Name, f.Nodes),
		Addresses:          v1alpha1.AddressCounts{Used: used(f)},
	}
	if f.Network.Spec.Delegated() && errors.Is(planErr, addressing.ErrNoSubnet) {
		// The plugin has addresses of its own, and counts them.
		planErr, status.Addresses = nil, v1alpha1.AddressCounts{}
	}
	if plan != nil {
		status.Addresses.Capacity = plan.TotalCapacity()
		status.Addresses.Claimed = claimed(plan, f.Network, f.Blocks)
	}
	ready := readiness(f, plan, planErr, status.Nodes)
	ready.ObservedGeneration = f.Network.Generation
	status.Conditions = append(status.Conditions, ready)
	if plan != nil {
		for _, condition := range []metav1.Condition{
			tightness(f, plan, status.Nodes),
			availability(f.Network.Status.Conditions, status.Addresses),
		} {
			condition.ObservedGeneration = f.Network.Generation
			status.Conditions = append(status.Conditions, condition)
		}
	}
	return status
}

// readiness decides in the order in which an admin should repair things: what
// is wrong with the spec alone, then with other objects, then with nodes.
func readiness(f *Facts, plan *addressing.Plan, planErr error, nodes v1alpha1.NodeCounts) metav1.Condition {
	spec := &f.Network.Spec
	if !f.Network.DeletionTimestamp.IsZero() {
		return notReady(v1alpha1.ReasonTerminating, Holding(f).String())
	}
	if message := unsupported(spec); message != "" {
		return notReady(v1alpha1.ReasonUnsupportedPlugin, message)
	}
	if _, err := pluginconfig.Of(spec); err != nil {
		return notReady(v1alpha1.ReasonInvalidSpec, "spec."+err.Error())
	}
	if planErr != nil {
		return notReady(v1alpha1.ReasonInvalidSpec, "spec."+strings.TrimPrefix(planErr.Error(), "spec."))
	}
	if !f.PhysicalNetworkExists {
		return notReady(v1alpha1.ReasonUnknownPhysicalNetwork,
			fmt.Sprintf("there is no PhysicalNetwork %q: create it, or make a new Network with the right physicalNet", spec.PhysicalNet))
	}
	if spec.Plugin == v1alpha1.PluginVXLAN {
		if reason, message := segment(f.Network, f.Overlays); reason != "" {
			return notReady(reason, message)
		}
	}
	if message := overlap(f.Network, plan, f.Siblings); message != "" {
		return notReady(v1alpha1.ReasonSubnetOverlap, message)
	}
	if nodes.Total == 0 {
		return notReady(v1alpha1.ReasonNoNode,
			fmt.Sprintf("no node maps a NIC to physical network %q: name one in the node's map file or in spec.nodeInterfaces of the PhysicalNetwork", spec.PhysicalNet))
	}
	return metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue,
		Reason: v1alpha1.ReasonReady, Message: readyMessage(f, nodes),
	}
}

func notReady(reason, message string) metav1.Condition {
	return metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: reason, Message: message}
}

// readyMessage has no counts in it: a message that changes with every node
// would be a status write for every node.
func readyMessage(f *Facts, nodes v1alpha1.NodeCounts) string {
	if nodes.Ready > 0 {
		return "pods may be placed on it"
	}
	node := firstNode(f.Nodes, func(n *v1alpha1.NodeNetwork) bool { return refusalOf(n, f.Network.Name) != nil })
	if node != nil {
		refusal := refusalOf(node, f.Network.Name)
		return fmt.Sprintf("no node can serve it now; node %s refuses it: %s: %s", node.Name, refusal.Reason, refusal.Message)
	}
	return fmt.Sprintf("no node can serve it now: all NICs of physical network %q are down, or their nodes' agents are not ready", f.Network.Spec.PhysicalNet)
}

// unsupported says why this release cannot run the spec, or nothing.
func unsupported(spec *v1alpha1.NetworkSpec) string {
	switch {
	case spec.Delegated() && spec.VLAN != 0:
		return fmt.Sprintf("vlan %d: a plugin that is not built in, such as %q, tags by itself: write it into pluginConfig", spec.VLAN, spec.Plugin)
	case spec.Delegated() && spec.ConflictDetection == v1alpha1.ConflictDetectionProbe:
		return fmt.Sprintf("conflictDetection Probe: a plugin that is not built in, such as %q, cannot wait for it", spec.Plugin)
	case spec.Delegated() && len(spec.Sysctls) > 0:
		return fmt.Sprintf("sysctls: a plugin that is not built in, such as %q, makes its interfaces by itself: add the plugin tuning to its configuration", spec.Plugin)
	case spec.Delegated() && spec.Subnet == "" && (len(spec.Routes) > 0 || spec.Gateway != ""):
		return fmt.Sprintf("routes and gateway: of a Network without subnet they are plugin %q's: write them into pluginConfig", spec.Plugin)
	case spec.Plugin == v1alpha1.PluginHostDevice && spec.VLAN != 0:
		return fmt.Sprintf("vlan %d: a pod that has a NIC for itself tags by itself: make a Network without vlan", spec.VLAN)
	case spec.Plugin == v1alpha1.PluginVXLAN && spec.VLAN != 0:
		return fmt.Sprintf("vlan %d: a tunnel has no tag of its own: make the tagged device on the nodes, map it to a physical network, and name that here without vlan", spec.VLAN)
	}
	return ""
}

// overlap names a Network that has some of network's addresses by an older
// right, or nothing. Only the one with the younger right is not Ready, so that
// a mistake never takes down what has been working.
func overlap(network *v1alpha1.Network, plan *addressing.Plan, siblings []v1alpha1.Network) string {
	var holder *v1alpha1.Network
	if plan == nil {
		return "" // the plugin's own addresses
	}
	for i := range siblings {
		other := &siblings[i]
		if other.Spec.VLAN != network.Spec.VLAN || other.Spec.PhysicalNet != network.Spec.PhysicalNet || !precedes(other, network) {
			continue
		}
		otherPlan, err := addressing.NewPlan(other.Name, &other.Spec)
		if err != nil || !plan.Overlaps(otherPlan) {
			continue // a Network without a plan has no addresses
		}
		if holder == nil || precedes(other, holder) {
			holder = other
		}
	}
	if holder == nil {
		return ""
	}
	return fmt.Sprintf("%s overlaps the older Network %q (%s) on physical network %q: choose another subnet or vlan, or delete one of the two",
		join(plan), holder.Name, subnetsOf(holder), network.Spec.PhysicalNet)
}

// precedes orders Networks by their right to addresses that both have: by age,
// those of one second by name. But a Network that grew by additionalSubnets
// into the addresses of a younger one that works must wait: pods live there.
func precedes(a, b *v1alpha1.Network) bool {
	if ra, rb := standing(a), standing(b); ra != rb {
		return ra > rb
	}
	if a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.Name < b.Name
	}
	return a.CreationTimestamp.Before(&b.CreationTimestamp)
}

// standing is 2 for a Network that was found free of overlap with its spec as
// it is, 1 if that was an earlier spec, and 0 if it never was. What is being
// deleted keeps its addresses until it is gone.
func standing(network *v1alpha1.Network) int {
	if !network.DeletionTimestamp.IsZero() {
		return 2
	}
	ready := meta.FindStatusCondition(network.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case ready == nil || ready.Status != metav1.ConditionTrue && ready.Reason != v1alpha1.ReasonNoNode:
		return 0
	case ready.ObservedGeneration != network.Generation:
		return 1
	}
	return 2
}

func subnetsOf(network *v1alpha1.Network) string {
	plan, err := addressing.NewPlan(network.Name, &network.Spec)
	if err != nil {
		return string(network.Spec.Subnet)
	}
	return join(plan)
}

func join(plan *addressing.Plan) string {
	var out []string
	for _, subnet := range plan.Subnets() {
		out = append(out, subnet.String())
	}
	return strings.Join(out, ", ")
}

// tightness is True from the moment when there are fewer unclaimed blocks than
// nodes. It is left only at twice as many: when a Network becomes Tight, every
// node may give back a warm block, and would claim one again once it is not.
func tightness(f *Facts, plan *addressing.Plan, nodes v1alpha1.NodeCounts) metav1.Condition {
	enough := int64(nodes.Total)
	if meta.IsStatusConditionTrue(f.Network.Status.Conditions, v1alpha1.ConditionTight) {
		enough *= 2
	}
	if unclaimed(plan, f.Blocks) < enough {
		return metav1.Condition{
			Type: v1alpha1.ConditionTight, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonFewBlocksLeft,
			Message: "fewer unclaimed blocks are left than nodes that back it: grow it with additionalSubnets, or choose a smaller blockSize in a new Network",
		}
	}
	return metav1.Condition{
		Type: v1alpha1.ConditionTight, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonBlocksLeft,
		Message: "every node that backs it can claim another block",
	}
}

// Hold is what keeps a Network that is being deleted.
type Hold struct {
	Pods   []string // namespace/name
	Blocks int
	Claims int // of fixed addresses
}

// Holding lists what still lives on a Network. Pods that no node was found for
// do not count: they have no address, and would hold the Network for ever.
func Holding(f *Facts) Hold {
	var h Hold
	for i := range f.Pods {
		h.Pods = append(h.Pods, f.Pods[i].Namespace+"/"+f.Pods[i].Name)
	}
	for i := range f.Blocks {
		if f.Blocks[i].Spec.NetworkUID == f.Network.UID {
			h.Blocks++
		}
	}
	for i := range f.Claims {
		if keepsNetwork(&f.Claims[i], f.Network) {
			h.Claims++
		}
	}
	slices.Sort(h.Pods) // caches have no order, and a message that changes is a write
	return h
}

// Empty tells that the Network may go.
func (h Hold) Empty() bool { return len(h.Pods) == 0 && h.Blocks == 0 && h.Claims == 0 }

// keepsNetwork tells whether a claim keeps the Network from going: the ipclaim
// controller deletes it when no pod uses its address. What an admin has
// reserved for any Network of the name, and no pod has used, stays.
func keepsNetwork(claim *v1alpha1.IPClaim, network *v1alpha1.Network) bool {
	return claim.Spec.NetworkUID == network.UID ||
		claim.Spec.NetworkUID == "" && slices.Contains(claim.Finalizers, v1alpha1.FinalizerIPClaim)
}

// String is the message of reason Terminating.
func (h Hold) String() string {
	var parts []string
	if n := len(h.Pods); n > 0 {
		names := strings.Join(h.Pods[:min(n, shownPods)], ", ")
		if n > shownPods {
			names += ", ..."
		}
		parts = append(parts, fmt.Sprintf("%s on it (%s)", count(n, "pod"), names))
	}
	if h.Blocks > 0 {
		parts = append(parts, count(h.Blocks, "address block")+" that nodes hold")
	}
	if h.Claims > 0 {
		parts = append(parts, count(h.Claims, "IPClaim")+" of addresses that are not given back")
	}
	if len(parts) == 0 {
		return "it is being deleted"
	}
	return "it is being deleted and waits for " + strings.Join(parts, " and ")
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
