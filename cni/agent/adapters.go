// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
)

// The parts of the agent declare what they need; these are the caches and the
// address manager in that form. Reads from a cache that is filled neither
// block nor fail, so there is no context to pass on.

// networks implements attach.Networks.
type networks struct{ reader client.Reader }

func (n networks) Get(name string) (*v1alpha1.Network, bool) {
	var out v1alpha1.Network
	if err := n.reader.Get(context.Background(), types.NamespacedName{Name: name}, &out); err != nil {
		return nil, false
	}
	return &out, true
}

// pods implements attach.Pods.
type pods struct{ reader client.Reader }

func (p pods) Annotations(namespace, name string) (map[string]string, bool) {
	var out corev1.Pod
	if err := p.reader.Get(context.Background(), types.NamespacedName{Namespace: namespace, Name: name}, &out); err != nil {
		return nil, false
	}
	return out.Annotations, true
}

// running implements attach.Running.
type running struct {
	cached, live client.Reader
	recorder     events.EventRecorder
}

func (r running) Networks(ctx context.Context, pod types.NamespacedName, uid types.UID, fresh bool) (annotation string, known bool, err error) {
	reader := r.cached
	if fresh {
		reader = r.live
	}
	var out corev1.Pod
	if err := reader.Get(ctx, pod, &out); err != nil {
		if apierrors.IsNotFound(err) {
			return "", false, nil
		}
		return "", false, fmt.Errorf("reading pod %s: %w", pod, err)
	}
	if out.UID != uid || out.DeletionTimestamp != nil || ended(&out) {
		return "", false, nil
	}
	return out.Annotations[v1alpha1.AnnotationNetworks], true, nil
}

func (r running) Plugged(pod types.NamespacedName, uid types.UID, note string) {
	r.recorder.Eventf(podOf(r.cached, pod, uid), nil, corev1.EventTypeNormal, v1alpha1.EventHotPlugged, actionHotPlug, "%s", note)
}

func (r running) Refused(pod types.NamespacedName, uid types.UID, note string) {
	r.recorder.Eventf(podOf(r.cached, pod, uid), nil, corev1.EventTypeWarning, v1alpha1.EventHotPlugRefused, actionHotPlug, "%s", note)
}

// actionHotPlug is what events of hot plug say was done.
const actionHotPlug = "HotPlug"

// podOf is the pod that an event is about, at its present version: of two events
// that differ in their notes alone the recorder only counts the second.
func podOf(cached client.Reader, pod types.NamespacedName, uid types.UID) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: uid}}
	var shown corev1.Pod
	if err := cached.Get(context.Background(), pod, &shown); err == nil && shown.UID == uid {
		out.ResourceVersion = shown.ResourceVersion
	}
	return out
}

// claims implements attach.Claims. A node has few pods with fixed addresses, so
// there is no index.
type claims struct{ reader client.Reader }

func (c claims) OfPod(uid types.UID) []*v1alpha1.IPClaim {
	var all v1alpha1.IPClaimList
	if err := c.reader.List(context.Background(), &all); err != nil {
		return nil
	}
	var out []*v1alpha1.IPClaim
	for i := range all.Items {
		if claim := &all.Items[i]; claim.Status.PodUID == uid {
			out = append(out, claim)
		}
	}
	return out
}

// definitions implements attach.Definitions. They are read when a pod asks for
// one, and not watched: the kind may be missing, and there may be many.
type definitions struct{ live client.Reader }

//+kubebuilder:rbac:groups=k8s.cni.cncf.io,resources=network-attachment-definitions,verbs=get

func (d definitions) Config(ctx context.Context, namespace, name string) (string, error) {
	var out unstructured.Unstructured
	out.SetGroupVersionKind(schema.GroupVersionKind{Group: "k8s.cni.cncf.io", Version: "v1", Kind: "NetworkAttachmentDefinition"})
	if err := d.live.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, &out); err != nil {
		return "", err
	}
	text, _, err := unstructured.NestedString(out.Object, "spec", "config")
	return text, err
}

// held implements inventory.HeldSource.
type held struct {
	manager *ipam.Manager
	pods    *livingPods
}

func (h held) Held() []v1alpha1.HeldAddresses {
	counts, done := h.pods.round()
	defer done()
	return h.manager.Held(counts)
}

func (h held) Conflicts() []v1alpha1.BlockConflict { return h.manager.Conflicts() }

// onLinks implements inventory.Pods: the server, which is made after the inventory.
type onLinks struct{ *agent }

func (o onLinks) NICsInPods() []link.Device { return o.server.NICsInPods() }

func (o onLinks) Parents() []string { return o.server.Parents() }

// taken implements attach.Taken.
type taken struct {
	cached   client.Reader
	recorder events.EventRecorder
}

func (t taken) AddressTaken(pod types.NamespacedName, uid types.UID, note string) {
	t.recorder.Eventf(podOf(t.cached, pod, uid), nil, corev1.EventTypeWarning, v1alpha1.EventAddressTaken, "Attach", "%s", note)
}

// serviceCIDRs gives the ranges of ClusterIPs: those of the flag, or else
// those of the cluster's ServiceCIDRs (KEP-1880).
type serviceCIDRs struct {
	reader client.Reader
	fixed  []netip.Prefix
}

func (s serviceCIDRs) list() []netip.Prefix {
	if len(s.fixed) > 0 {
		return s.fixed
	}
	var found networkingv1.ServiceCIDRList
	if err := s.reader.List(context.Background(), &found); err != nil {
		return nil
	}
	var out []netip.Prefix
	for i := range found.Items {
		for _, text := range found.Items[i].Spec.CIDRs {
			if prefix, err := netip.ParsePrefix(text); err == nil {
				out = append(out, prefix.Masked())
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}
