// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// namespaceCache is what namespaces needs of the caches.
type namespaceCache interface {
	client.Reader
	GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
	RemoveInformer(ctx context.Context, obj client.Object) error
}

// namespaces implements attach.Namespaces. Only Networks with a
// namespaceSelector ask for Namespaces, of which a large cluster has thousands:
// they are watched while there is such a Network.
type namespaces struct {
	caches namespaceCache

	mu       sync.Mutex
	informer cache.Informer // nil while nobody asks
}

// adapt begins or ends the watch, as the Networks that exist want it.
func (n *namespaces) adapt(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all v1alpha1.NetworkList
	if err := n.caches.List(ctx, &all, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("looking for Networks with a namespaceSelector: %w", err)
	}
	wanted := slices.ContainsFunc(all.Items, func(network v1alpha1.Network) bool { return network.Spec.NamespaceSelector != nil })
	switch {
	case wanted && n.informer == nil:
		informer, err := n.caches.GetInformer(ctx, &corev1.Namespace{}, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watching Namespaces: %w", err)
		}
		n.informer = informer
		klog.FromContext(ctx).Info("Watching Namespaces: a Network has a namespaceSelector")
	case !wanted && n.informer != nil:
		n.informer = nil
		if err := n.caches.RemoveInformer(ctx, &corev1.Namespace{}); err != nil {
			return fmt.Errorf("watching Namespaces no more: %w", err)
		}
		klog.FromContext(ctx).Info("Watching Namespaces no more: no Network has a namespaceSelector")
	}
	return nil
}

// watching returns the watch; nil while there is none.
func (n *namespaces) watching() cache.Informer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.informer
}

// filled says that all Namespaces are known, as far as anybody asks for them.
func (n *namespaces) filled() bool {
	informer := n.watching()
	return informer == nil || informer.HasSynced()
}

// Labels knows no namespace before the cache is filled: the caller tries again.
func (n *namespaces) Labels(name string) (map[string]string, bool) {
	if informer := n.watching(); informer == nil || !informer.HasSynced() {
		return nil, false
	}
	var out corev1.Namespace
	if err := n.caches.Get(context.Background(), types.NamespacedName{Name: name}, &out); err != nil {
		return nil, false
	}
	return out.Labels, true
}
