// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/netplane/netplane/api/v1alpha1"
)

// lookBackEvery is how often the caches are asked how far they have come.
const lookBackEvery = time.Second

// ErrRewound ends an agent whose caches wait for what will not come. A watch
// that begins at a version which the API server has not reached any more brings
// nothing, not even bookmarks, until it has; the next agent begins with lists.
var ErrRewound = errors.New("the API server's state went back behind what was read of it: the caches have to be filled anew")

// cacheVersion tells how far one kind's cache has come.
type cacheVersion struct {
	kind    string
	list    schema.GroupVersionKind
	version func() string
}

// followHistory has the history see what the caches see: how far each has come,
// bookmarks included, and objects that become older than they were.
func (c *Claimer) followHistory(mgr ctrl.Manager) error {
	kinds := []struct {
		name  string
		group schema.GroupVersion
		obj   client.Object
	}{
		{blocksKind, v1alpha1.SchemeGroupVersion, &v1alpha1.IPBlock{}}, {"Network", v1alpha1.SchemeGroupVersion, &v1alpha1.Network{}},
		{"NodeNetwork", v1alpha1.SchemeGroupVersion, &v1alpha1.NodeNetwork{}},
		{"Node", corev1.SchemeGroupVersion, &corev1.Node{}}, {"Pod", corev1.SchemeGroupVersion, &corev1.Pod{}},
	}
	ctx := context.Background() // registers only: nothing is read before the caches start
	for _, kind := range kinds {
		informer, err := mgr.GetCache().GetInformer(ctx, kind.obj, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("following the cache of %ss: %w", kind.name, err)
		}
		if position, ok := informer.(interface{ LastSyncResourceVersion() string }); ok {
			c.caches = append(c.caches, cacheVersion{kind.name, kind.group.WithKind(kind.name + "List"), position.LastSyncResourceVersion})
		}
		if _, err := informer.AddEventHandler(c.watchObjects(kind.name)); err != nil {
			return fmt.Errorf("following the cache of %ss: %w", kind.name, err)
		}
	}
	if err := mgr.Add(manager.RunnableFunc(c.lookBack)); err != nil {
		return fmt.Errorf("following the API server's state: %w", err)
	}
	return nil
}

// watchObjects looks for objects that become older, and for blocks that vanish.
func (c *Claimer) watchObjects(kind string) toolscache.ResourceEventHandlerFuncs {
	return toolscache.ResourceEventHandlerFuncs{
		UpdateFunc: func(before, after any) {
			a, ok1 := before.(client.Object)
			b, ok2 := after.(client.Object)
			if ok1 && ok2 && older(b.GetResourceVersion(), a.GetResourceVersion()) {
				c.history.wentBack("an object became older", "kind", kind, "name", a.GetName(),
					"from", a.GetResourceVersion(), "to", b.GetResourceVersion())
			}
		},
		DeleteFunc: func(obj any) {
			if last, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = last.Obj
			}
			if block, ok := obj.(*v1alpha1.IPBlock); ok && c.vanished(block) {
				c.history.wentBack("a block vanished that this node had not let go", "name", block.Name)
			}
		},
	}
}

// vanished tells of a block that is gone whether it went without this node's
// doing. That of a former Node of the name is not ours to let go.
func (c *Claimer) vanished(block *v1alpha1.IPBlock) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished[block.UID] {
		delete(c.finished, block.UID)
		return false
	}
	return c.holds(block)
}

// lookBack compares all caches with the API server, asks them every while until
// ctx ends, and less often the API server itself.
func (c *Claimer) lookBack(ctx context.Context) error {
	if err := c.compareAll(ctx); err != nil {
		return err
	}
	ticker := time.NewTicker(lookBackEvery)
	defer ticker.Stop()
	probe := time.NewTicker(c.probeEvery + rand.N(c.probeEvery/10))
	defer probe.Stop()
	for turn := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			c.askCaches()
		case <-probe.C:
			if len(c.caches) == 0 {
				continue
			}
			if _, err := c.askServer(ctx, c.nextCache(turn)); err != nil {
				return err
			}
			c.history.saveNow()
			turn++
		}
	}
}

// nextCache is the cache to compare next: every other time the one that has come
// furthest, as it is the one to be ahead of an API server that was set back.
func (c *Claimer) nextCache(turn int) cacheVersion {
	if turn%2 == 1 {
		return c.caches[turn/2%len(c.caches)]
	}
	furthest := c.caches[0]
	for _, cached := range c.caches[1:] {
		if older(furthest.version(), cached.version()) {
			furthest = cached
		}
	}
	return furthest
}

func (c *Claimer) askCaches() {
	for _, kind := range c.caches {
		c.history.see(stream{kind.kind, fromCache}, kind.version())
	}
	c.history.save()
}
