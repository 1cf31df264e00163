// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// followApart follows objects of a kind in a cache of their own until ctx ends:
// what only some pods need, the agent holds only while they are there. changed is
// called when all are known, and for every change; fill fills a list with the
// cache's own objects, and is false before all are known. The objects are counted
// in counts, unless it is nil.
func followApart(ctx context.Context, mgr ctrl.Manager, obj client.Object, by cache.ByObject, counts *watched, changed func()) (fill func(client.ObjectList) bool, err error) {
	apart, err := cache.New(mgr.GetConfig(), cache.Options{
		Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(), HTTPClient: mgr.GetHTTPClient(),
		ByObject: map[client.Object]cache.ByObject{obj: by},
	})
	if err != nil {
		return nil, err
	}
	informer, err := follow(ctx, apart, obj, changed)
	if err != nil {
		return nil, err
	}
	if counts != nil {
		counts.addUntil(ctx, obj, informer)
	}
	go func() {
		if err := apart.Start(ctx); err != nil {
			klog.FromContext(ctx).Error(err, "Objects are not followed", "kind", kindOf(obj))
		}
	}()
	go func() {
		if toolscache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			changed() // also if there is none
		}
	}()
	return func(list client.ObjectList) bool {
		return informer.HasSynced() && apart.List(ctx, list, client.UnsafeDisableDeepCopy) == nil
	}, nil
}

func pointers[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}
