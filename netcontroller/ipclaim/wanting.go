// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipclaim

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// wanting remembers the pods for which no claim could be made, and what each
// has been told, so that no event is repeated. It is safe for concurrent use.
type wanting struct {
	mu   sync.Mutex
	pods map[types.NamespacedName]want
}

// want is what one pod lacks: the messages by the item of its annotation.
type want struct {
	uid  types.UID
	told map[string]string
}

func newWanting() *wanting { return &wanting{pods: map[types.NamespacedName]want{}} }

// set notes what a pod lacks, and returns the items of which it has not been
// told so.
func (w *wanting) set(pod types.NamespacedName, uid types.UID, lacks map[string]string) (news map[string]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.pods[pod]
	if before.uid != uid {
		before = want{}
	}
	news = map[string]bool{}
	for item, message := range lacks {
		news[item] = before.told[item] != message
	}
	if len(lacks) == 0 {
		delete(w.pods, pod)
	} else {
		w.pods[pod] = want{uid: uid, told: lacks}
	}
	return news
}

func (w *wanting) requests() []reconcile.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]reconcile.Request, 0, len(w.pods))
	for pod := range w.pods {
		out = append(out, reconcile.Request{NamespacedName: pod})
	}
	return out
}

// all asks for a sync of all of them, whatever the event.
func (w *wanting) all() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request { return w.requests() })
}
