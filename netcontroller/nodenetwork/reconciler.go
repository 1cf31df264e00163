// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package nodenetwork

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/api/v1alpha1"
)

// actionEvaluate is the action that events name.
const actionEvaluate = "Evaluate"

// reconciler writes the condition AgentReady (server-side apply under its own
// field owner, so that the agent's fields stay the agent's) and the labels.
//
// +kubebuilder:rbac:groups=netplane.io,resources=nodenetworks,verbs=get;list;watch
// +kubebuilder:rbac:groups=netplane.io,resources=nodenetworks/status,verbs=get;patch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
type reconciler struct {
	client   client.Client
	recorder events.EventRecorder
	clock    clock.PassiveClock
}

// Reconcile brings one node's condition and labels up to date. The request
// names Node and NodeNetwork alike; either may be missing.
func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	node, err := get(ctx, r.client, request.Name, &corev1.Node{})
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("reading Node %q: %w", request.Name, err)
	}
	nodeNetwork, err := get(ctx, r.client, request.Name, &v1alpha1.NodeNetwork{})
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("reading NodeNetwork %q: %w", request.Name, err)
	}
	if nodeNetwork != nil {
		if err := r.writeCondition(ctx, node, nodeNetwork); err != nil {
			return ctrl.Result{}, client.IgnoreNotFound(err)
		}
	}
	if node != nil {
		if err := r.writeLabels(ctx, node, WantedLabels(nodeNetwork)); err != nil {
			return ctrl.Result{}, client.IgnoreNotFound(err)
		}
	}
	return ctrl.Result{}, nil
}

// get reads one object; nil means that there is none.
func get[T client.Object](ctx context.Context, reader client.Reader, name string, into T) (T, error) {
	var none T
	if err := reader.Get(ctx, client.ObjectKey{Name: name}, into); err != nil {
		return none, client.IgnoreNotFound(err)
	}
	return into, nil
}

func (r *reconciler) writeCondition(ctx context.Context, node *corev1.Node, nodeNetwork *v1alpha1.NodeNetwork) error {
	var pods corev1.PodList
	if err := r.client.List(ctx, &pods, client.MatchingFields{indexAgentNode: nodeNetwork.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("reading the cache index %s: %w", indexAgentNode, err)
	}
	want := EvaluateAgent(node, pods.Items)
	have := meta.FindStatusCondition(nodeNetwork.Status.Conditions, want.Type)
	want.LastTransitionTime = metav1.NewTime(r.clock.Now())
	if have != nil && have.Status == want.Status {
		want.LastTransitionTime = have.LastTransitionTime
	}
	if have != nil && equality.Semantic.DeepEqual(*have, want) {
		return nil
	}
	apply, err := agentReadyApply(nodeNetwork, want)
	if err != nil {
		return err
	}
	err = r.client.Status().Apply(ctx, apply, client.FieldOwner(v1alpha1.FieldOwnerController), client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("applying condition %s to NodeNetwork %q: %w", want.Type, nodeNetwork.Name, err)
	}
	if have == nil || have.Status != want.Status || have.Reason != want.Reason {
		log.FromContext(ctx).V(2).Info("Condition changed", "condition", want.Type, "status", want.Status,
			"reason", want.Reason, "message", want.Message)
		kind := corev1.EventTypeWarning
		if want.Status == metav1.ConditionTrue {
			kind = corev1.EventTypeNormal
		}
		r.recorder.Eventf(nodeNetwork, nil, kind, want.Reason, actionEvaluate, "%s", want.Message)
	}
	return nil
}

// agentReadyApply is the whole of what this controller owns in a NodeNetwork.
// The UID keeps an apply from creating a NodeNetwork, or from meeting a later
// one of the same name: creating is the agent's.
func agentReadyApply(nodeNetwork *v1alpha1.NodeNetwork, condition metav1.Condition) (runtime.ApplyConfiguration, error) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&condition)
	if err != nil {
		return nil, fmt.Errorf("converting condition %s: %w", condition.Type, err)
	}
	object := &unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"name": nodeNetwork.Name, "uid": string(nodeNetwork.UID)},
		"status":   map[string]any{"conditions": []any{fields}},
	}}
	object.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("NodeNetwork"))
	return client.ApplyConfigurationFromUnstructured(object), nil
}

// writeLabels patches only the keys that differ: all other labels of the Node
// belong to others, and so does the order of writes to them.
func (r *reconciler) writeLabels(ctx context.Context, node *corev1.Node, want map[string]string) error {
	changes := LabelChanges(node.Labels, want)
	if len(changes) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": node.UID, "labels": changes}})
	if err != nil {
		return fmt.Errorf("writing the label patch of Node %q: %w", node.Name, err)
	}
	target := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}
	if err := r.client.Patch(ctx, target, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("labelling Node %q: %w", node.Name, err)
	}
	log.FromContext(ctx).V(2).Info("Labelled a Node with its physical networks", "labels", want)
	return nil
}
