// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"context"
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/objects"
)

// world is what one test makes: nodes, networks and a namespace of its own,
// all removed at its end.
type world struct {
	t         *testing.T
	api       client.Client
	namespace string
}

// newWorld is one at the API server that all tests share.
func newWorld(t *testing.T) *world { return newWorldAt(t, api) }

func newWorldAt(t *testing.T, api client.Client) *world {
	w := &world{t: t, api: api}
	namespace := &v1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	w.create(namespace)
	w.namespace = namespace.Name
	return w
}

// create makes an object, which goes when the test ends.
func (w *world) create(object client.Object) {
	w.t.Helper()
	if err := w.api.Create(w.t.Context(), object); err != nil {
		w.t.Fatalf("creating %T %s: %v", object, object.GetName(), err)
	}
	w.t.Cleanup(func() {
		// The test's own context has ended.
		if err := w.api.Delete(context.Background(), object, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
			w.t.Errorf("deleting %T %s: %v", object, object.GetName(), err)
		}
	})
}

func (w *world) updateStatus(object client.Object) {
	w.t.Helper()
	if err := w.api.Status().Update(w.t.Context(), object); err != nil {
		w.t.Fatalf("updating the status of %T %s: %v", object, object.GetName(), err)
	}
}

// node makes a Node and, unless physical is nil, a NodeNetwork with a ready
// agent and one NIC that is up for each physical network.
func (w *world) node(name string, physical ...string) *v1alpha1.NodeNetwork {
	w.t.Helper()
	w.bareNode(name)
	if physical == nil {
		return nil
	}
	return w.nodeNetwork(name, physical...)
}

// bareNode makes a Node that is ready.
func (w *world) bareNode(name string) {
	w.t.Helper()
	w.create(objects.Node(name))
}

// nodeNetwork makes a NodeNetwork as a ready agent writes it.
func (w *world) nodeNetwork(name string, physical ...string) *v1alpha1.NodeNetwork {
	w.t.Helper()
	offer := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}}
	w.create(offer)
	offer.Status = objects.NodeNetworkStatus(physical...)
	w.updateStatus(offer)
	return offer
}

// setNICs says whether the node's NICs are up.
func (w *world) setNICs(offer *v1alpha1.NodeNetwork, up bool) {
	w.t.Helper()
	reason := v1alpha1.ReasonInterfaceDown
	if up {
		reason = v1alpha1.ReasonInterfaceUp
	}
	for i := range offer.Status.PhysicalNetworks {
		offer.Status.PhysicalNetworks[i].Ready, offer.Status.PhysicalNetworks[i].Reason = up, reason
	}
	w.updateStatus(offer)
}

// network makes a Network of blocks with 8 addresses, and says that it is ready.
func (w *world) network(name, physical, subnet string, change ...func(*v1alpha1.NetworkSpec)) *v1alpha1.Network {
	w.t.Helper()
	network := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: physical, Plugin: v1alpha1.PluginMacvlan, Subnet: v1alpha1.CIDR(subnet), BlockSize: 8},
	}
	for _, c := range change {
		c(&network.Spec)
	}
	w.create(network)
	w.setReady(network, metav1.ConditionTrue, v1alpha1.ReasonReady, "")
	return network
}

func (w *world) setReady(network *v1alpha1.Network, status metav1.ConditionStatus, reason, message string) {
	w.t.Helper()
	meta.SetStatusCondition(&network.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady, Status: status, Reason: reason, Message: message})
	w.updateStatus(network)
}

// block gives the node a block of the network.
func (w *world) block(network *v1alpha1.Network, node, cidr string) *v1alpha1.IPBlock {
	w.t.Helper()
	var holder v1.Node
	if err := w.api.Get(w.t.Context(), key(node), &holder); err != nil {
		w.t.Fatal(err)
	}
	block := objects.Block(network, cidr, node, holder.UID)
	w.create(block)
	return block
}

// pod asks for networks; without any it has no annotation.
func (w *world) pod(name, networks string, change ...func(*v1.Pod)) *v1.Pod {
	w.t.Helper()
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace},
		Spec: v1.PodSpec{
			SchedulerName: v1alpha1.DefaultSchedulerName,
			Containers:    []v1.Container{{Name: "c", Image: "none"}},
			Tolerations:   []v1.Toleration{{Operator: v1.TolerationOpExists}},
			// No kubelet confirms the end of a pod here.
			TerminationGracePeriodSeconds: new(int64),
		},
	}
	if networks != "" {
		pod.Annotations = map[string]string{v1alpha1.AnnotationNetworks: networks}
	}
	for _, c := range change {
		c(pod)
	}
	w.create(pod)
	return pod
}

// bound tells on which node each of the namespace's pods is; empty for none.
func (w *world) bound() map[string]string {
	w.t.Helper()
	var list v1.PodList
	if err := w.api.List(w.t.Context(), &list, client.InNamespace(w.namespace)); err != nil {
		w.t.Fatal(err)
	}
	out := map[string]string{}
	for i := range list.Items {
		out[list.Items[i].Name] = list.Items[i].Spec.NodeName
	}
	return out
}

// count returns how many pods are bound, and how many are not.
func (w *world) count() (placed, pending int) {
	for _, node := range w.bound() {
		if node == "" {
			pending++
		} else {
			placed++
		}
	}
	return placed, pending
}

func (w *world) awaitBound(pod *v1.Pod) string {
	w.t.Helper()
	var node string
	eventually(w.t, func() string {
		if node = w.bound()[pod.Name]; node == "" {
			return fmt.Sprintf("pod %s is not bound; the scheduler says:\n%s", pod.Name, strings.Join(w.complaints(pod.Name), "\n"))
		}
		return ""
	})
	return node
}

// awaitPending waits until the scheduler has said of the pod what is wanted,
// and that it is not bound.
func (w *world) awaitPending(pod *v1.Pod, want string) {
	w.t.Helper()
	eventually(w.t, func() string {
		said := w.complaints(pod.Name)
		for _, complaint := range said {
			if strings.Contains(complaint, want) {
				return ""
			}
		}
		return fmt.Sprintf("no event of pod %s says %q, only:\n%s", pod.Name, want, strings.Join(said, "\n"))
	})
	if node := w.bound()[pod.Name]; node != "" {
		w.t.Fatalf("pod %s was bound to %s", pod.Name, node)
	}
}

// complaints are the notes of a pod's FailedScheduling events.
func (w *world) complaints(pod string) []string {
	w.t.Helper()
	var list eventsv1.EventList
	if err := w.api.List(w.t.Context(), &list, client.InNamespace(w.namespace)); err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for i := range list.Items {
		if event := &list.Items[i]; event.Regarding.Name == pod && event.Reason == "FailedScheduling" {
			out = append(out, event.Note)
		}
	}
	return out
}
