// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/netplane/netplane/api/v1alpha1"
)

// stopTimeout bounds how long running requests may take to end after SIGTERM;
// the DaemonSet grants a little more.
const stopTimeout = 10 * time.Second

// newManager makes the manager with caches that hold nothing but what this
// node needs: its own Node, NodeNetwork, pods, blocks and claims; all Networks,
// PhysicalNetworks and ServiceCIDRs, and all Namespaces if a Network asks for
// them; of each only what is read.
func newManager(config *rest.Config, opts *options) (ctrl.Manager, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme), networkingv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("building the scheme: %w", err)
	}
	stop := stopTimeout
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                  scheme,
		Logger:                  klog.Background(),
		Metrics:                 metricsserver.Options{BindAddress: opts.metricsAddress},
		HealthProbeBindAddress:  opts.healthAddress,
		GracefulShutdownTimeout: &stop,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject:         ownObjects(opts.nodeName),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("making the manager: %w", err)
	}
	return mgr, nil
}

func ownObjects(nodeName string) map[client.Object]cache.ByObject {
	byName := fields.OneTermEqualSelector(metav1.ObjectNameField, nodeName)
	return map[client.Object]cache.ByObject{
		&corev1.Node{}:          {Field: byName, Transform: slimNode},
		&v1alpha1.NodeNetwork{}: {Field: byName},
		&corev1.Pod{}:           {Field: fields.OneTermEqualSelector("spec.nodeName", nodeName), Transform: slimPod},
		&v1alpha1.IPBlock{}:     {Field: fields.OneTermEqualSelector(v1alpha1.FieldIPBlockNodeName, nodeName)},
		&v1alpha1.IPClaim{}:     {Field: fields.OneTermEqualSelector(v1alpha1.FieldIPClaimNodeName, nodeName)},
		&corev1.Namespace{}:     {Transform: slimNamespace},
	}
}

// slimNode keeps what nodeSelectors and ownership need.
func slimNode(obj any) (any, error) {
	if node, ok := obj.(*corev1.Node); ok {
		slim := slimMeta(&node.ObjectMeta)
		slim.Labels = node.Labels
		return &corev1.Node{ObjectMeta: slim}, nil
	}
	return obj, nil
}

// slimPod keeps what says which networks a pod asks for, what it got, and
// whether it is alive.
func slimPod(obj any) (any, error) {
	if pod, ok := obj.(*corev1.Pod); ok {
		slim := &corev1.Pod{ObjectMeta: slimMeta(&pod.ObjectMeta)}
		for _, key := range []string{
			v1alpha1.AnnotationNetworks, v1alpha1.AnnotationNPWGNetworks, v1alpha1.AnnotationMultusDefaultNetwork,
			v1alpha1.AnnotationNetworkStatus, v1alpha1.AnnotationNetworkStatusSandbox, v1alpha1.AnnotationAttached,
		} {
			if value, ok := pod.Annotations[key]; ok {
				metav1.SetMetaDataAnnotation(&slim.ObjectMeta, key, value)
			}
		}
		slim.Spec.NodeName, slim.Spec.SchedulerName, slim.Spec.HostNetwork = pod.Spec.NodeName, pod.Spec.SchedulerName, pod.Spec.HostNetwork
		slim.Status.Phase = pod.Status.Phase
		return slim, nil
	}
	return obj, nil
}

// slimNamespace keeps what namespaceSelectors look at.
func slimNamespace(obj any) (any, error) {
	if namespace, ok := obj.(*corev1.Namespace); ok {
		slim := slimMeta(&namespace.ObjectMeta)
		slim.Labels = namespace.Labels
		return &corev1.Namespace{ObjectMeta: slim}, nil
	}
	return obj, nil
}

func slimMeta(meta *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: meta.Name, Namespace: meta.Namespace, UID: meta.UID, ResourceVersion: meta.ResourceVersion,
		CreationTimestamp: meta.CreationTimestamp, DeletionTimestamp: meta.DeletionTimestamp,
	}
}

// follow has changed called for every change of objects of a kind. Handlers
// are told nothing: they look at the caches.
func follow(ctx context.Context, caches cache.Cache, obj client.Object, changed func()) (cache.Informer, error) {
	informer, err := caches.GetInformer(ctx, obj, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watching %T: %w", obj, err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { changed() },
		UpdateFunc: func(_, _ any) { changed() },
		DeleteFunc: func(any) { changed() },
	})
	if err != nil {
		return nil, fmt.Errorf("watching %T: %w", obj, err)
	}
	return informer, nil
}

// watched are the informers by kind, to tell how much they hold.
type watched struct {
	mu     sync.Mutex
	byKind map[string][]cache.Informer
}

func (w *watched) add(obj client.Object, informer cache.Informer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byKind == nil {
		w.byKind = map[string][]cache.Informer{}
	}
	w.byKind[kindOf(obj)] = append(w.byKind[kindOf(obj)], informer)
}

// addUntil is add for an informer that ends with ctx.
func (w *watched) addUntil(ctx context.Context, obj client.Object, informer cache.Informer) {
	w.add(obj, informer)
	context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		left := slices.DeleteFunc(w.byKind[kindOf(obj)], func(i cache.Informer) bool { return i == informer })
		if w.byKind[kindOf(obj)] = left; len(left) == 0 {
			delete(w.byKind, kindOf(obj))
		}
	})
}

func (w *watched) counts() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make(map[string]int, len(w.byKind))
	for kind, informers := range w.byKind {
		for _, informer := range informers {
			out[kind] += size(informer)
		}
	}
	return out
}

// size is the number of objects behind an informer, which is client-go's own.
func size(informer cache.Informer) int {
	if backed, ok := informer.(interface{ GetStore() toolscache.Store }); ok {
		return len(backed.GetStore().ListKeys())
	}
	return 0
}

// kindOf names an object's kind, such as Pod: the type has the same name.
func kindOf(obj client.Object) string { return reflect.TypeOf(obj).Elem().Name() }
