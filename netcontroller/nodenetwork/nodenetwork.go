// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package nodenetwork keeps what the controller owns of a node: the condition
// AgentReady of its NodeNetwork, from the readiness of the agent's pod, and the
// Node's labels physical.netplane.io/<physical network>=<NIC>. Everything else
// in a NodeNetwork is its agent's.
package nodenetwork

import (
	"context"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/netplane/netplane/api/v1alpha1"
)

// indexAgentNode finds the agent's pods by their node.
const indexAgentNode = "nodenetwork.agentNode"

// labelAppName is the recommended label that tells the agent's pods.
const labelAppName = "app.kubernetes.io/name"

// Options of the controller; zero values mean the defaults.
type Options struct {
	// SystemNamespace is where the agents' pods are; a pod elsewhere that
	// bears their label is not an agent.
	SystemNamespace string
	// Clock tells the time of transitions.
	Clock clock.PassiveClock
}

// Setup registers the controller with mgr.
func Setup(mgr ctrl.Manager, opts Options) error {
	if opts.SystemNamespace == "" {
		opts.SystemNamespace = v1alpha1.SystemNamespace
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	agents := agentPods{namespace: opts.SystemNamespace}
	// Registers only: nothing is read before the caches start.
	if err := mgr.GetFieldIndexer().IndexField(context.Background(), &corev1.Pod{}, indexAgentNode, agents.node); err != nil {
		return fmt.Errorf("making the cache index %s: %w", indexAgentNode, err)
	}
	r := &reconciler{
		client:   mgr.GetClient(),
		recorder: mgr.GetEventRecorder(v1alpha1.FieldOwnerController),
		clock:    opts.Clock,
	}
	err := ctrl.NewControllerManagedBy(mgr).
		Named("nodenetwork").
		For(&v1alpha1.NodeNetwork{}).
		Watches(&corev1.Node{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(nodeChanged())).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(agents.request), builder.WithPredicates(agents.changed())).
		Complete(r)
	if err != nil {
		return fmt.Errorf("setting up the NodeNetwork controller: %w", err)
	}
	return nil
}

// agentPods tells the agent's pods from others.
type agentPods struct{ namespace string }

func (a agentPods) is(object client.Object) bool {
	return object.GetNamespace() == a.namespace && object.GetLabels()[labelAppName] == v1alpha1.AgentAppLabel
}

// node is the key of indexAgentNode.
func (a agentPods) node(object client.Object) []string {
	pod, ok := object.(*corev1.Pod)
	if !ok || !a.is(pod) || pod.Spec.NodeName == "" {
		return nil
	}
	return []string{pod.Spec.NodeName}
}

func (a agentPods) request(_ context.Context, object client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, name := range a.node(object) {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Name: name}})
	}
	return requests
}

// changed passes events of agent pods that could change the condition.
func (a agentPods) changed() predicate.Predicate {
	return predicate.Funcs{
		CreateFunc: func(e event.CreateEvent) bool { return a.is(e.Object) },
		DeleteFunc: func(e event.DeleteEvent) bool { return a.is(e.Object) },
		UpdateFunc: func(e event.UpdateEvent) bool {
			before, bok := e.ObjectOld.(*corev1.Pod)
			after, aok := e.ObjectNew.(*corev1.Pod)
			if !bok || !aok || a.is(before) != a.is(after) {
				return true
			}
			return a.is(after) && (before.Spec.NodeName != after.Spec.NodeName || podReady(before) != podReady(after) || why(before) != why(after))
		},
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

// nodeChanged passes what could change the condition or our labels: a Node's
// heartbeats and its other labels do not.
func nodeChanged() predicate.Predicate {
	return predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool {
			before, bok := e.ObjectOld.(*corev1.Node)
			after, aok := e.ObjectNew.(*corev1.Node)
			return !bok || !aok || nodeReady(before) != nodeReady(after) || before.UID != after.UID ||
				!maps.Equal(ours(before.Labels), ours(after.Labels))
		},
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}

func ours(labels map[string]string) map[string]string {
	out := map[string]string{}
	for key, value := range labels {
		if strings.HasPrefix(key, v1alpha1.LabelPhysicalPrefix) {
			out[key] = value
		}
	}
	return out
}
