// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// additions remembers the Services that got our annotation before our eyes
// while Kubernetes' own controller published them: traffic goes to those, and
// is to be moved. Of an annotated Service that we see for the first time nothing
// tells whether it ever was without, and what never was is not to be mixed. It
// is remembered until the cache has the condition that says the same.
type additions struct {
	mu   sync.Mutex
	seen map[types.NamespacedName]types.UID
}

func newAdditions() *additions { return &additions{seen: map[types.NamespacedName]types.UID{}} }

// note looks at an update of a Service.
func (a *additions) note(before, now *corev1.Service) {
	if isAnnotated(before) || !isAnnotated(now) || before.UID != now.UID || !isBuiltIn(before) || !isBuiltIn(now) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen[client.ObjectKeyFromObject(now)] = now.UID
}

// isBuiltIn tells whether Kubernetes' own controller publishes a Service.
func isBuiltIn(svc *corev1.Service) bool {
	_, hasKey := svc.Spec.Selector[v1alpha1.SelectorEndpointsKey]
	return !hasKey && len(svc.Spec.Selector) > 0 && svc.Spec.Type != corev1.ServiceTypeExternalName
}

// has tells whether the Service, as the cache has it, got its annotation before
// our eyes and no condition says yet what came of it. A malformed annotation
// is not the end of it: it may be corrected.
func (a *additions) has(svc *corev1.Service) bool {
	key := client.ObjectKeyFromObject(svc)
	a.mu.Lock()
	defer a.mu.Unlock()
	uid, seen := a.seen[key]
	if !seen {
		return false
	}
	said := meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ConditionEndpointsByNetwork)
	if uid != svc.UID || !isAnnotated(svc) || !isBuiltIn(svc) || said != nil && said.Reason != v1alpha1.ReasonInvalidAnnotation {
		delete(a.seen, key)
		return false
	}
	return true
}

func (a *additions) forget(svc types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.seen, svc)
}
