// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/api/v1alpha1"
)

// fillPoll is how often caches are asked whether they are filled. They are
// before the Claimer starts, unless a test runs it by itself.
const fillPoll = 20 * time.Millisecond

// compareAll compares every cache once with the API server. An agent that starts
// while etcd is set back may have filled one cache before and another after: none
// of them goes back, and the one filled before goes on in silence. All caches are
// filled before the first question, and all have to answer in one round: else
// there is the same gap between two kinds.
func (c *Claimer) compareAll(ctx context.Context) error {
	for {
		c.askCaches()
		pause := fillPoll
		if c.filled() {
			pause = lookBackEvery
			all, err := c.compareRound(ctx)
			if err != nil {
				return err
			}
			c.history.saveNow()
			if all {
				close(c.compared)
				c.pokeAll()
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func (c *Claimer) filled() bool {
	for _, cached := range c.caches {
		if cached.version() == "" {
			return false
		}
	}
	return true
}

// compareRound compares all caches at the same time.
func (c *Claimer) compareRound(ctx context.Context) (all bool, err error) {
	answers := make([]bool, len(c.caches))
	group, ctx := errgroup.WithContext(ctx)
	for i, cached := range c.caches {
		group.Go(func() (err error) {
			answers[i], err = c.askServer(ctx, cached)
			return err
		})
	}
	err = group.Wait()
	all = true
	for _, answered := range answers {
		all = all && answered
	}
	return all, err
}

// isCompared tells that the caches are known to be of one state of the API
// server. Who reads from no caches of the agent has nothing to compare.
func (c *Claimer) isCompared() bool {
	if len(c.caches) == 0 {
		return true
	}
	select {
	case <-c.compared:
		return true
	default:
		return false
	}
}

// awaitComparison gives the comparison a moment: in the ordinary case it takes a
// few milliseconds, and blocks that are closed for these would be published.
func (c *Claimer) awaitComparison(ctx context.Context) {
	if c.isCompared() {
		return
	}
	timer := time.NewTimer(c.comparing)
	defer timer.Stop()
	select {
	case <-c.compared:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// askServer compares one kind's cache with the API server. It selects by a name,
// so that the list costs next to nothing; of a kind in namespaces that is so in
// one namespace only. No answer is no news.
func (c *Claimer) askServer(ctx context.Context, cached cacheVersion) (answered bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	name, own := c.node, c.nextOwn(ctx, cached.kind)
	if own != nil {
		name = own.Name
	}
	read := cached.version()
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(cached.list)
	err = c.live.List(ctx, &list, client.MatchingFields{metav1.ObjectNameField: name}, client.InNamespace(metav1.NamespaceDefault))
	if err != nil {
		log.FromContext(ctx).V(4).Info("The API server did not say how far it is", "kind", cached.kind, "err", err)
		return false, nil
	}
	if older(list.ResourceVersion, read) {
		c.history.wentBack("the API server is behind a cache", "kind", cached.kind, "read", read, "server", list.ResourceVersion)
		return true, ErrRewound
	}
	// The next agent of this node has to know, even if no event of its own
	// objects brings this version before this one ends.
	c.history.see(stream{cached.kind, fromServer}, list.ResourceVersion)
	return true, c.compareOwn(ctx, own, &list)
}

// nextOwn is the next block in turn that is this node's for certain, as the
// cache has it; nil if there is none, or another kind is asked for.
func (c *Claimer) nextOwn(ctx context.Context, kind string) *v1alpha1.IPBlock {
	if kind != blocksKind {
		return nil
	}
	var list v1alpha1.IPBlockList
	if err := c.client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		log.FromContext(ctx).V(4).Info("The cache does not say which blocks are the node's", "err", err)
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var first, next *v1alpha1.IPBlock
	for i := range list.Items {
		block := &list.Items[i]
		if block.DeletionTimestamp != nil || c.finished[block.UID] || !c.holds(block) {
			continue
		}
		if first == nil || block.Name < first.Name {
			first = block
		}
		if block.Name > c.lastAsked && (next == nil || block.Name < next.Name) {
			next = block
		}
	}
	if next == nil {
		next = first
	}
	if next != nil {
		c.lastAsked = next.Name
	}
	return next
}

func (c *Claimer) letGone(block *v1alpha1.IPBlock) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finished[block.UID]
}

// holds tells that a block is this node's, which has not let it go. The caller
// has the lock.
func (c *Claimer) holds(block *v1alpha1.IPBlock) bool {
	return block.Spec.NodeName == c.node && block.Spec.NodeUID == c.nodeUID && controllerutil.ContainsFinalizer(block, v1alpha1.FinalizerIPBlock)
}

// compareOwn compares a block in the cache with what the API server has of it.
// An API server that was set back may have passed the versions of the caches
// before it was asked for its own; then its objects tell.
func (c *Claimer) compareOwn(ctx context.Context, own *v1alpha1.IPBlock, list *metav1.PartialObjectMetadataList) error {
	if own == nil || len(list.Items) == 1 && list.Items[0].UID == own.UID && !older(list.Items[0].ResourceVersion, own.ResourceVersion) {
		return nil
	}
	// Somebody may have removed it by force a moment ago: then the event is on
	// its way, and is a sign as well.
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(lookBackEvery):
	}
	var cached v1alpha1.IPBlock
	if err := c.client.Get(ctx, client.ObjectKeyFromObject(own), &cached); err != nil || cached.UID != own.UID || c.letGone(own) {
		return nil //nolint:nilerr // it is gone from the cache, too
	}
	c.history.wentBack("the API server lacks a block that the cache has", "name", own.Name, "version", own.ResourceVersion, "server", list.ResourceVersion)
	return ErrRewound
}
