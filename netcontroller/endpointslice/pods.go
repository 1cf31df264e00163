// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	sliceutil "k8s.io/endpointslice/util"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// labelServiceProxyName keeps kube-proxy away from what carries it (KEP-2447).
// k8s.io/kubernetes has it in a package that is too large to link.
const labelServiceProxyName = "service.kubernetes.io/service-proxy-name"

// Why an address is withheld, as events tell it.
const (
	whyNoAddress = "it is no IP address"
	whyNoHost    = "no endpoint can have an address that is unspecified, loopback, link-local, multicast or mapped from IPv4"
	whyNoBlock   = "it lies in no IPBlock of this network that the pod's node holds, and no IPClaim gives it to the pod"
	whyContested = "another pod on the same node claims it too"
	// whyContestedAnywhere is for Networks whose addresses are in no IPBlock.
	whyContestedAnywhere = "another pod claims it too"
	whyNotAgents         = "the annotation " + v1alpha1.AnnotationNetworkStatusSandbox + " is missing, which netplane's agent writes with network-status"
	whyNotKubelets       = "it is none of the pod's own in status.podIPs"
)

// shadowPods are the pod as one network's slices see it: one copy per address
// that may be published, whose pod IP is that address and whose readiness
// counts the network's NIC too. One per address, because the slice library
// puts all addresses of one family into one endpoint, of which consumers read
// the first only.
func shadowPods(pod *corev1.Pod, n network, families []corev1.IPFamily, known facts) (shadows []*corev1.Pod, refused []withheld) {
	if !sliceutil.ShouldPodBeInEndpoints(pod, true) || !hasSandbox(pod) {
		return nil, nil
	}
	if n.physicalNet == "" {
		return clusterShadows(pod, families), forgedOnCluster(pod, known)
	}
	ready := sliceutil.IsPodReady(pod) && known.linked[onNode{pod.Spec.NodeName, n.physicalNet}]
	attachments, err := known.status(pod)
	if err != nil {
		return nil, nil // see unreadable
	}
	for _, attachment := range attachments {
		if attachment.Name != n.name || isStale(pod, attachment) {
			continue
		}
		for _, text := range attachment.IPs {
			addr, why := parseHost(text)
			if why == "" && pod.Annotations[v1alpha1.AnnotationNetworkStatusSandbox] == "" {
				why = whyNotAgents
			}
			if why == "" {
				why = distrust(pod, n, claim{n.name, addr}, known)
			}
			if why != "" {
				refused = append(refused, withheld{pod, n.name, text, why})
				continue
			}
			if slices.Contains(families, familyOf(addr)) {
				// The network may have another NIC that is up; this pod stands on its own.
				up := !known.down[onNode{pod.Spec.NodeName, attachment.NIC}]
				shadows = append(shadows, shadowPod(pod, addr.String(), ready && up))
			}
		}
	}
	return shadows, refused
}

// parseHost reads an address, and says why none can be published that is
// written so; empty means that it can. One that the API server refuses would
// take the whole slice with it.
func parseHost(text string) (addr netip.Addr, why string) {
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil || addr.Zone() != "":
		return addr, whyNoAddress
	case addr.IsUnspecified() || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.Is4In6():
		return addr, whyNoHost
	default:
		return addr, ""
	}
}

// distrust says why an address is not to be published; empty means that it is.
// Annotations can be forged, so an address counts only if the pod's own node
// holds the block that it is from, or if an IPClaim gives it to this very pod:
// then nobody else's annotation can throw doubt on it.
func distrust(pod *corev1.Pod, n network, c claim, known facts) string {
	if n.plan == nil {
		// A plugin's own addresses: what guards them is who may write the
		// annotation, and that no other pod claims the same.
		if known.contested(pod, c) {
			return whyContestedAnywhere
		}
		return ""
	}
	if slices.Contains(known.fixed[pod.UID], claim{n.name, n.plan.Principal(c.addr)}) {
		return ""
	}
	held := slices.ContainsFunc(known.blocks[onNode{pod.Spec.NodeName, n.name}], func(block netip.Prefix) bool {
		return n.plan.Serves(block, c.addr) || n.amended && n.plan.Holds(block, c.addr)
	})
	if !held {
		return whyNoBlock
	}
	if known.contested(pod, c) {
		return whyContested
	}
	return ""
}

// outclaims tells whether another claimant of an address stands in the way of
// pod. One on another node does not, unless anywhere is set: it fails for its
// node's blocks, if the Network has blocks. A pod that is going away yields to
// one that is not: its sandbox, and with it the address, may be gone before the
// pod object is.
func outclaims(other, pod *corev1.Pod, anywhere bool) bool {
	return other.UID != pod.UID && (anywhere || other.Spec.NodeName == pod.Spec.NodeName) &&
		(other.DeletionTimestamp == nil || pod.DeletionTimestamp != nil)
}

// claimsOf are the addresses that a pod's annotation claims. A pod that ended
// claims none, nor does one without a sandbox: what it had is another's by now.
func claimsOf(pod *corev1.Pod) []claim {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || !hasSandbox(pod) {
		return nil
	}
	var out []claim
	for _, attachment := range attachmentsOf(pod) {
		for _, text := range attachment.IPs {
			if addr, err := netip.ParseAddr(text); err == nil {
				out = append(out, claim{attachment.Name, addr})
			}
		}
	}
	return out
}

// unreadable tells of a network-status that cannot be read: an agent wrote
// another. It names no network, and so is withheld once, not for each of them.
func unreadable(pod *corev1.Pod, known facts) []withheld {
	_, err := known.status(pod)
	if err == nil || !sliceutil.ShouldPodBeInEndpoints(pod, true) || !hasSandbox(pod) {
		return nil
	}
	digest := sha256.Sum256([]byte(pod.Annotations[v1alpha1.AnnotationNetworkStatus])) // so that each content has one event, and takes little memory
	return []withheld{{pod: pod, address: hex.EncodeToString(digest[:8]), why: shorten(err.Error(), maxNote/4)}}
}

// forgedOnCluster are addresses that a network-status claims on the cluster's
// own network although kubelet, whose word counts there, knows none of the
// entry's.
func forgedOnCluster(pod *corev1.Pod, known facts) []withheld {
	attachments, err := known.status(pod)
	if err != nil {
		return nil
	}
	var out []withheld
	for _, attachment := range attachments {
		if attachment.Name != v1alpha1.DefaultNetworkName || isKubelets(pod, attachment) {
			continue
		}
		for _, text := range attachment.IPs {
			out = append(out, withheld{pod, attachment.Name, text, whyNotKubelets})
		}
	}
	return out
}

// attachmentsOf reads the pod's network-status. Without the sandbox's ID beside
// it, it is not our agent's. One that cannot be read attaches nothing.
func attachmentsOf(pod *corev1.Pod) []podnetworks.Attachment {
	if pod.Annotations[v1alpha1.AnnotationNetworkStatusSandbox] == "" {
		return nil
	}
	attachments, err := podnetworks.ParseStatus(pod.Annotations[v1alpha1.AnnotationNetworkStatus])
	if err != nil {
		return nil
	}
	return attachments
}

// hasSandbox is false while kubelet says that the pod's sandbox is gone or not
// yet made (KEP-3085): what is known of its addresses is then of an earlier
// sandbox. Where kubelet does not tell, the sandbox is taken to exist.
func hasSandbox(pod *corev1.Pod) bool {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == corev1.PodReadyToStartContainers {
			return pod.Status.Conditions[i].Status != corev1.ConditionFalse
		}
	}
	return true
}

// clusterShadows are the pod on the cluster's own network; a pod whose eth0 is
// one of ours is not on it.
func clusterShadows(pod *corev1.Pod, families []corev1.IPFamily) []*corev1.Pod {
	if text := pod.Annotations[v1alpha1.AnnotationNetworks]; strings.TrimSpace(text) != "" {
		requests, err := podnetworks.Parse(text)
		if err != nil || podnetworks.Primary(requests) != nil {
			return nil
		}
	}
	var out []*corev1.Pod
	for _, ip := range pod.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		if err == nil && slices.Contains(families, familyOf(addr)) {
			out = append(out, shadowPod(pod, ip.IP, sliceutil.IsPodReady(pod)))
		}
	}
	return out
}

// isStale tells an attachment of an earlier sandbox, as far as it can be told:
// kubelet knows the present sandbox's addresses on eth0.
func isStale(pod *corev1.Pod, attachment podnetworks.Attachment) bool {
	return attachment.Interface == podnetworks.PrimaryInterface && !isKubelets(pod, attachment)
}

// isKubelets tells whether kubelet knows one of an attachment's addresses.
func isKubelets(pod *corev1.Pod, attachment podnetworks.Attachment) bool {
	return slices.ContainsFunc(pod.Status.PodIPs, func(ip corev1.PodIP) bool {
		addr, err := netip.ParseAddr(ip.IP)
		return err == nil && slices.ContainsFunc(attachment.IPs, func(text string) bool {
			claimed, err := netip.ParseAddr(text)
			return err == nil && claimed == addr
		})
	})
}

func shadowPod(pod *corev1.Pod, ip string, ready bool) *corev1.Pod {
	shadow := *pod
	shadow.Status.PodIP = ip
	shadow.Status.PodIPs = []corev1.PodIP{{IP: ip}}
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	shadow.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}
	return &shadow
}
