// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	// compareEvery leaves most of the minute in which agents keep blocks closed
	// after a restore to a new start, and to the marks of contested blocks.
	compareEvery = 10 * time.Second
	// compareTimeout bounds one question.
	compareTimeout = 10 * time.Second
	// nameOfNothing is what is selected: the answer's version is all that counts.
	nameOfNothing = "netplane-compares-versions"
)

// errRewound ends a controller whose caches wait for what will not come. A watch
// that begins at a version which the API server has not reached any more brings
// nothing until it has. The lease tells of it only where it was lost meanwhile.
var errRewound = errors.New("the API server's state went back behind what was read of it (a restored backup?): the caches have to be filled anew")

// position is how far one kind's cache has come.
type position struct {
	kind     schema.GroupVersionKind
	version  func() string
	furthest string // what version told when it was highest
}

// look remembers how far the cache is. A watch that ends within its first second
// is begun anew with a list, and such a cache goes back with the API server; what
// controllers have concluded from the state before does not.
func (p *position) look() {
	version := p.version()
	if order, err := resourceversion.CompareResourceVersion(version, p.furthest); p.furthest == "" || err == nil && order > 0 {
		p.furthest = version
	}
}

// comparer compares the caches with the API server. It runs with or without the
// lease: who waits for it would go on with the caches that it has.
type comparer struct {
	live   client.Reader
	caches []*position
	every  time.Duration
}

// newComparer follows the caches of the kinds that decide about addresses; the
// controllers have them anyway.
func newComparer(mgr ctrl.Manager) (*comparer, error) {
	c := &comparer{live: mgr.GetAPIReader(), every: compareEvery}
	ctx := context.Background() // registers only: nothing is read before the caches start
	for kind, obj := range map[schema.GroupVersionKind]client.Object{
		corev1.SchemeGroupVersion.WithKind("Node"):          &corev1.Node{},
		corev1.SchemeGroupVersion.WithKind("Pod"):           &corev1.Pod{},
		v1alpha1.SchemeGroupVersion.WithKind("IPBlock"):     &v1alpha1.IPBlock{},
		v1alpha1.SchemeGroupVersion.WithKind("IPClaim"):     &v1alpha1.IPClaim{},
		v1alpha1.SchemeGroupVersion.WithKind("Network"):     &v1alpha1.Network{},
		v1alpha1.SchemeGroupVersion.WithKind("NodeNetwork"): &v1alpha1.NodeNetwork{},
	} {
		informer, err := mgr.GetCache().GetInformer(ctx, obj, cache.BlockUntilSynced(false))
		if err != nil {
			return nil, fmt.Errorf("following the cache of %ss: %w", kind.Kind, err)
		}
		if told, ok := informer.(interface{ LastSyncResourceVersion() string }); ok {
			c.caches = append(c.caches, &position{kind: kind, version: told.LastSyncResourceVersion})
		}
	}
	return c, nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*comparer) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable. The first comparison is at once: caches that
// were filled while etcd was set back may be of two states.
func (c *comparer) Start(ctx context.Context) error {
	ticks := time.NewTicker(c.every)
	defer ticks.Stop()
	for {
		for _, cached := range c.caches { // before the first question: an answer may take long
			cached.look()
		}
		for _, cached := range c.caches {
			if err := c.compare(ctx, cached); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
	}
}

// compare lists one name, in one namespace, so that the API server has next to
// nothing to do. No answer is no news.
func (c *comparer) compare(ctx context.Context, cached *position) error {
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(cached.kind.GroupVersion().WithKind(cached.kind.Kind + "List"))
	err := c.live.List(ctx, &list, client.MatchingFields{metav1.ObjectNameField: nameOfNothing}, client.InNamespace(metav1.NamespaceDefault))
	if err != nil {
		klog.FromContext(ctx).V(4).Info("The API server did not say how far it is", "kind", cached.kind.Kind, "err", err)
		return nil
	}
	// Versions of one kind only grow (KEP-5504). A cache that is not filled yet has
	// none, which does not compare.
	if order, err := resourceversion.CompareResourceVersion(list.ResourceVersion, cached.furthest); err != nil || order >= 0 {
		return nil
	}
	return fmt.Errorf("%ss were read up to version %s, and the API server is at %s: %w", cached.kind.Kind, cached.furthest, list.ResourceVersion, errRewound)
}
