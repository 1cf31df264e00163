// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/netplane/netplane/api/v1alpha1"
)

// lookBackEvery is how often the caches are asked how far they have come.
const lookBackEvery = time.Second

// cacheVersion tells how far one kind's cache has come.
type cacheVersion struct {
	kind    string
	version func() string
}

// followHistory has the history see what the caches see: how far each has come,
// bookmarks included, and objects that become older than they were.
func (c *Claimer) followHistory(mgr ctrl.Manager) error {
	kinds := []struct {
		name string
		obj  client.Object
	}{
		{streamBlocks, &v1alpha1.IPBlock{}}, {"Network", &v1alpha1.Network{}}, {"NodeNetwork", &v1alpha1.NodeNetwork{}},
		{"Node", &corev1.Node{}}, {"Pod", &corev1.Pod{}},
	}
	ctx := context.Background() // registers only: nothing is read before the caches start
	for _, kind := range kinds {
		informer, err := mgr.GetCache().GetInformer(ctx, kind.obj, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("following the cache of %ss: %w", kind.name, err)
		}
		if position, ok := informer.(interface{ LastSyncResourceVersion() string }); ok {
			c.caches = append(c.caches, cacheVersion{kind.name, position.LastSyncResourceVersion})
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
	return block.Spec.NodeName == c.node && block.Spec.NodeUID == c.nodeUID && controllerutil.ContainsFinalizer(block, v1alpha1.FinalizerIPBlock)
}

// lookBack asks the caches every while until ctx ends.
func (c *Claimer) lookBack(ctx context.Context) error {
	ticker := time.NewTicker(lookBackEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			c.askCaches()
		}
	}
}

func (c *Claimer) askCaches() {
	for _, kind := range c.caches {
		c.history.see(kind.kind, kind.version())
	}
	c.history.save()
}
