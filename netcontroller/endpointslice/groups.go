// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// network is what publishing needs to know of one network that a Service names.
type network struct {
	name        string
	uid         types.UID
	physicalNet string // empty for the cluster's own
	isolated    bool
	// inPod: pods on it reach its ClusterIPs although it is isolated.
	inPod    bool
	families []corev1.IPFamily
	// plan is nil where addresses cannot be checked: the cluster's own network,
	// whose addresses kubelet writes, and delegates with an IPAM of their own.
	plan *addressing.Plan
	// amended: the spec is not the first, so that pods may have addresses that
	// plan keeps back.
	amended bool
}

// clusterNetwork stands for the cluster's own network, "default" in a Service.
func clusterNetwork() network {
	return network{name: v1alpha1.DefaultNetworkName, families: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}}
}

// networkOf reads a Network. A Network that cannot be carved has no families,
// so that nothing of it is published; its own Ready condition says why.
func networkOf(obj *v1alpha1.Network) network {
	n := network{
		name:        obj.Name,
		uid:         obj.UID,
		physicalNet: obj.Spec.PhysicalNet,
		isolated:    obj.Spec.Reachability != v1alpha1.ReachabilityRouted,
		inPod:       obj.Spec.ServiceProxy == v1alpha1.ServiceProxyInPod,
	}
	plan, err := addressing.NewPlan(obj.Name, &obj.Spec)
	switch {
	case err == nil:
		n.plan, n.amended = plan, obj.Generation > 1
		for _, subnet := range plan.Subnets() {
			if family := familyOf(subnet.Addr()); !slices.Contains(n.families, family) {
				n.families = append(n.families, family)
			}
		}
	case errors.Is(err, addressing.ErrNoSubnet):
		n.families = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	}
	return n
}

func familyOf(addr netip.Addr) corev1.IPFamily {
	if addr.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// onNode is a network (of either kind) on one node.
type onNode struct{ node, network string }

// claim is one address on one network.
type claim struct {
	network string
	addr    netip.Addr
}

// facts is all that publishing one Service's endpoints depends on, besides the
// Service and its pods.
type facts struct {
	networks  map[string]network        // by name; those that do not exist are absent
	blocks    map[onNode][]netip.Prefix // the IPBlocks of a node in a Network
	fixed     map[types.UID][]claim     // the addresses that IPClaims give a pod on its node; of both families the IPv4 one
	linked    map[onNode]bool           // whether a node's NICs for a physical network are up
	down      map[onNode]bool           // NICs of a node (by their names, not networks') that are known to be down
	contested func(*corev1.Pod, claim) bool
	status    func(*corev1.Pod) ([]podnetworks.Attachment, error) // what its annotation says
}

// group is the input for one network's slices of one Service.
type group struct {
	network string
	service *corev1.Service
	pods    []*corev1.Pod
}

// problem is something that the Service's owner should know.
type problem struct{ reason, message string }

// withheld is an address that a pod claims but that is not published.
type withheld struct {
	pod     *corev1.Pod
	network string // empty for a network-status that cannot be read
	address string // as the pod's annotation has it; of one that cannot be read, a digest of it
	why     string
}

// outcome is what one Service's slices shall be.
type outcome struct {
	groups   []group
	problems []problem
	withheld []withheld
}

// publish decides which attachments of which pods go into which slices. It
// reads nothing but its arguments and changes none of them.
func publish(svc *corev1.Service, networks podnetworks.ServiceNetworks, pods []*corev1.Pod, known facts) outcome {
	var out outcome
	for _, name := range networks.Networks() {
		if p := unpublishable(svc, name, known); p != nil {
			out.problems = append(out.problems, *p)
			continue
		}
		n := known.networks[name]
		families := sharedFamilies(svc, n)
		shadow := shadowService(svc, networks, n, families)
		g := group{network: name, service: shadow}
		for _, pod := range pods {
			shadows, refused := shadowPods(pod, n, families, known)
			g.pods = append(g.pods, shadows...)
			out.withheld = append(out.withheld, refused...)
		}
		out.groups = append(out.groups, g)
	}
	for _, pod := range pods {
		out.withheld = append(out.withheld, unreadable(pod, known)...)
	}
	out.problems = append(out.problems, unreachablePorts(svc, networks, known)...)
	return out
}

// sharedFamilies are the Service's IP families that the network has too. The
// API server fills in spec.ipFamilies; without them all of the network's count.
func sharedFamilies(svc *corev1.Service, n network) []corev1.IPFamily {
	if len(svc.Spec.IPFamilies) == 0 {
		return n.families
	}
	var out []corev1.IPFamily
	for _, family := range svc.Spec.IPFamilies {
		if slices.Contains(n.families, family) {
			out = append(out, family)
		}
	}
	return out
}

func familyText(families []corev1.IPFamily) string {
	switch len(families) {
	case 0:
		return "no"
	case 1:
		return string(families[0])
	default:
		return "IPv4 and IPv6"
	}
}

// unreachablePorts finds ports of a ClusterIP Service that kube-proxy has no
// endpoint for, because all their networks are isolated from the nodes, and that
// no pod serves for itself.
func unreachablePorts(svc *corev1.Service, networks podnetworks.ServiceNetworks, known facts) []problem {
	if svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	var out []problem
	for i := range svc.Spec.Ports {
		port := &svc.Spec.Ports[i]
		isolated := 0
		for _, name := range networks.ForPort(port.Name) {
			if n, ok := known.networks[name]; !ok || !n.isolated || n.inPod {
				isolated = -1
				break
			}
			isolated++
		}
		if isolated > 0 {
			out = append(out, problem{v1alpha1.ReasonIsolatedClusterIP, fmt.Sprintf("port %s: its networks are isolated from the nodes, so that nothing answers at the cluster IP: make the Service headless (clusterIP: None), set serviceProxy: InPod on a network, or name one whose reachability is Routed", portText(port))})
		}
	}
	return out
}

func portText(port *corev1.ServicePort) string {
	if port.Name == "" {
		return fmt.Sprint(port.Port)
	}
	return fmt.Sprintf("%q", port.Name)
}

// shadowService is the Service as the slices of one network see it: with the
// ports and families of that network, and with the labels that its slices
// carry. The slice library copies labels and owner from it.
func shadowService(svc *corev1.Service, networks podnetworks.ServiceNetworks, n network, families []corev1.IPFamily) *corev1.Service {
	shadow := *svc
	shadow.Labels = maps.Clone(svc.Labels)
	if shadow.Labels == nil {
		shadow.Labels = map[string]string{}
	}
	shadow.Labels[v1alpha1.LabelNetwork] = n.name
	if n.isolated {
		if _, ok := shadow.Labels[labelServiceProxyName]; !ok {
			shadow.Labels[labelServiceProxyName] = v1alpha1.IsolatedServiceProxyName
		}
		// kube-proxy 1.37 tells Services by that label, slices by that of headless ones
		// alone (cmd/kube-proxy/app/server.go), which the library sets for these only.
		shadow.Spec.ClusterIP, shadow.Spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
	}
	shadow.Spec.IPFamilies = families
	shadow.Spec.Ports = nil
	for i := range svc.Spec.Ports {
		if slices.Contains(networks.ForPort(svc.Spec.Ports[i].Name), n.name) {
			shadow.Spec.Ports = append(shadow.Spec.Ports, svc.Spec.Ports[i])
		}
	}
	return &shadow
}
