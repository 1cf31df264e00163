// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package nodenetwork

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// maxLabelValue is the API's bound on a label's value.
const maxLabelValue = 63

// EvaluateAgent decides the condition AgentReady of a node from its agent's
// pods. A nil node is one that is gone. The condition has no LastTransitionTime.
//
// A node that is not Ready has no ready agent, whatever its pods say: their
// readiness is then what kubelet last wrote.
func EvaluateAgent(node *corev1.Node, pods []corev1.Pod) metav1.Condition {
	condition := metav1.Condition{Type: v1alpha1.ConditionAgentReady, Status: metav1.ConditionFalse}
	best := chooseAgent(pods)
	switch {
	case node == nil:
		condition.Reason = v1alpha1.ReasonNoAgentPod
		condition.Message = "the Node is gone"
	case best == nil:
		condition.Reason = v1alpha1.ReasonNoAgentPod
		condition.Message = "no agent pod runs on the node: see the tolerations of DaemonSet netplane-agent and the node's taints"
	case !nodeReady(node):
		condition.Reason = v1alpha1.ReasonAgentPodNotReady
		condition.Message = "the Node is not Ready"
	case !podReady(best):
		condition.Reason = v1alpha1.ReasonAgentPodNotReady
		condition.Message = fmt.Sprintf("agent pod %s/%s is not Ready%s", best.Namespace, best.Name, why(best))
	default:
		condition.Status = metav1.ConditionTrue
		condition.Reason = v1alpha1.ReasonAgentPodReady
		condition.Message = "the agent serves"
	}
	return condition
}

// chooseAgent prefers a ready pod that stays: while a DaemonSet rolls, the old
// pod and the new one may both be there. Among equals the least name is taken,
// because caches have no order.
func chooseAgent(pods []corev1.Pod) *corev1.Pod {
	var best *corev1.Pod
	for i := range pods {
		pod := &pods[i]
		if best == nil || rank(pod) > rank(best) || rank(pod) == rank(best) && pod.Name < best.Name {
			best = pod
		}
	}
	return best
}

func rank(pod *corev1.Pod) int {
	switch {
	case podReady(pod):
		return 2
	case pod.DeletionTimestamp.IsZero():
		return 1
	}
	return 0
}

// podReady: it serves and will go on serving.
func podReady(pod *corev1.Pod) bool {
	if !pod.DeletionTimestamp.IsZero() {
		return false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func nodeReady(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// why adds what kubelet says about the first container that does not run.
func why(pod *corev1.Pod) string {
	if !pod.DeletionTimestamp.IsZero() {
		return ": it is being deleted"
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Waiting != nil && c.State.Waiting.Reason != "" {
			return fmt.Sprintf(": container %s waits: %s", c.Name, c.State.Waiting.Reason)
		}
	}
	return ": read its log"
}

// WantedLabels are the labels that say which NIC backs which physical network
// on a node: the first NIC of each mapping. A NIC that is down keeps its label,
// so that labels do not flap with links; one that the node lacks has none.
func WantedLabels(nodeNetwork *v1alpha1.NodeNetwork) map[string]string {
	labels := map[string]string{}
	if nodeNetwork == nil {
		return labels
	}
	for i := range nodeNetwork.Status.PhysicalNetworks {
		mapping := &nodeNetwork.Status.PhysicalNetworks[i]
		if len(mapping.Interfaces) == 0 || mapping.Reason == v1alpha1.ReasonInterfaceNotFound {
			continue
		}
		labels[v1alpha1.LabelPhysicalPrefix+mapping.Name] = labelValue(mapping.Interfaces[0])
	}
	return labels
}

// LabelChanges is what must change in a Node's labels: a nil value removes.
// Every label with our prefix is ours, whoever wrote it.
func LabelChanges(have, want map[string]string) map[string]*string {
	changes := map[string]*string{}
	for key, value := range want {
		if old, is := have[key]; !is || old != value {
			changes[key] = &value
		}
	}
	for key := range have {
		if _, wanted := want[key]; !wanted && strings.HasPrefix(key, v1alpha1.LabelPhysicalPrefix) {
			changes[key] = nil
		}
	}
	return changes
}

// labelValue writes a NIC's name as a label value: the kernel allows more in a
// name (eth0:1, veth@2) than the API does in a value.
func labelValue(nic string) string {
	value := strings.Map(func(r rune) rune {
		if alphanumeric(r) || strings.ContainsRune("-_.", r) {
			return r
		}
		return '_'
	}, nic)
	value = value[:min(len(value), maxLabelValue)]
	return strings.TrimFunc(value, func(r rune) bool { return !alphanumeric(r) })
}

func alphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}
