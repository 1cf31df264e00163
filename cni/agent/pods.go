// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
)

// livingPods knows the pods that the scheduler counts on this node: those that
// exist and have not ended. An address of any other pod is held.
type livingPods struct {
	mu      sync.Mutex
	alive   map[types.UID]struct{}
	changed func()
}

func newLivingPods(changed func()) *livingPods {
	return &livingPods{alive: map[types.UID]struct{}{}, changed: changed}
}

// follow learns from the cache of this node's pods; synced says that it has
// heard of all that were there.
func (l *livingPods) follow(ctx context.Context, caches cache.Cache) (synced toolscache.InformerSynced, err error) {
	informer, err := caches.GetInformer(ctx, &corev1.Pod{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watching pods: %w", err)
	}
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
	alive := exists && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
	l.mu.Lock()
	_, before := l.alive[pod.UID]
	if alive {
		l.alive[pod.UID] = struct{}{}
	} else {
		delete(l.alive, pod.UID)
	}
	l.mu.Unlock()
	if before != alive {
		l.changed()
	}
}

// Has says whether the pod lives.
func (l *livingPods) Has(uid types.UID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.alive[uid]
	return ok
}
