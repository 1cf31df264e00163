// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/netplane/netplane/api/v1alpha1"
)

// podLag is how long a pod that kubelet starts may take through the watch.
// Without it, every pod that is started at once would cost two writes of the
// NodeNetwork: its address held, and not held.
const podLag = 3 * time.Second

// livingPods knows the pods that the scheduler counts on this node: those that
// exist and have not ended. An address of any other pod is held.
type livingPods struct {
	clock   clock.WithDelayedExecution
	changed func()

	mu    sync.Mutex
	alive map[types.UID]struct{}
	// absent are the pods with addresses that are not alive: until when they may
	// come, or zero if they are gone.
	absent  map[types.UID]time.Time
	serving bool
}

func newLivingPods(c clock.WithDelayedExecution, changed func()) *livingPods {
	return &livingPods{clock: c, changed: changed, alive: map[types.UID]struct{}{}, absent: map[types.UID]time.Time{}}
}

// follow learns from the cache of this node's pods; synced says that it has
// heard of all that were there.
func (l *livingPods) follow(informer cache.Informer) (synced toolscache.InformerSynced, err error) {
	registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { l.set(obj, true) },
		UpdateFunc: func(_, obj any) { l.set(obj, true) },
		DeleteFunc: func(obj any) {
			if last, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = last.Obj
			}
			l.set(obj, false)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("watching pods: %w", err)
	}
	return registration.HasSynced, nil
}

func (l *livingPods) set(obj any, exists bool) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	alive := exists && !ended(pod)
	l.mu.Lock()
	_, before := l.alive[pod.UID]
	if alive {
		l.alive[pod.UID] = struct{}{}
		delete(l.absent, pod.UID)
	} else {
		delete(l.alive, pod.UID)
		l.absent[pod.UID] = time.Time{}
	}
	l.mu.Unlock()
	if before != alive {
		l.changed()
	}
}

// serve says that from now on pods may start of which the watch has not told.
func (l *livingPods) serve() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serving = true
}

// round returns what says whether a pod lives, or may have been started a
// moment ago. done ends the round, in which the pods of all leases were asked
// about; the others are forgotten.
func (l *livingPods) round() (counts func(types.UID) bool, done func()) {
	asked := map[types.UID]struct{}{}
	counts = func(uid types.UID) bool {
		asked[uid] = struct{}{}
		return l.counts(uid)
	}
	return counts, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		maps.DeleteFunc(l.absent, func(uid types.UID, _ time.Time) bool {
			_, ok := asked[uid]
			return !ok
		})
	}
}

func (l *livingPods) counts(uid types.UID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.alive[uid]; ok {
		return true
	}
	until, known := l.absent[uid]
	if !known {
		if l.serving {
			until = l.clock.Now().Add(podLag)
			l.clock.AfterFunc(podLag, l.changed)
		}
		l.absent[uid] = until
	}
	return l.clock.Now().Before(until)
}

// ended pods have no sandbox, or are about to lose it.
func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// followNetworks has changed called with each pod of this node whose annotation
// netplane.io/networks changes.
func followNetworks(ctx context.Context, caches cache.Cache, changed func(types.UID)) error {
	informer, err := caches.GetInformer(ctx, &corev1.Pod{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watching pods: %w", err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{UpdateFunc: func(before, after any) {
		was, ok1 := before.(*corev1.Pod)
		pod, ok2 := after.(*corev1.Pod)
		if ok1 && ok2 && was.Annotations[v1alpha1.AnnotationNetworks] != pod.Annotations[v1alpha1.AnnotationNetworks] {
			changed(pod.UID)
		}
	}})
	if err != nil {
		return fmt.Errorf("watching pods: %w", err)
	}
	return nil
}
