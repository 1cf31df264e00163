// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/netplane/netplane/api/v1alpha1"
)

// fakeCache notes which watches are begun and ended.
type fakeCache struct {
	client.Client
	informer fakeInformer
	calls    []string
}

type fakeInformer struct {
	cache.Informer
	synced bool
}

func (f *fakeInformer) HasSynced() bool { return f.synced }

func (f *fakeCache) GetInformer(_ context.Context, obj client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	f.calls = append(f.calls, "watch "+kindOf(obj))
	return &f.informer, nil
}

func (f *fakeCache) RemoveInformer(_ context.Context, obj client.Object) error {
	f.calls = append(f.calls, "end "+kindOf(obj))
	return nil
}

func TestNamespacesAreWatchedWhileANetworkHasASelector(t *testing.T) {
	open := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "open"}}
	closed := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: "closed"}, Spec: v1alpha1.NetworkSpec{NamespaceSelector: &metav1.LabelSelector{}},
	}
	caches := &fakeCache{Client: fake.NewClientBuilder().WithScheme(newScheme(t)).WithObjects(open,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod", Labels: map[string]string{"tenant": "a"}}}).Build()}
	n := &namespaces{caches: caches}
	adapt := func() {
		t.Helper()
		if err := n.adapt(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	known := func() string {
		labels, ok := n.Labels("prod")
		if !ok {
			return "unknown"
		}
		return labels["tenant"]
	}
	expect := func(when string, filled bool, tenant string, calls ...string) {
		t.Helper()
		if got := n.filled(); got != filled {
			t.Errorf("%s: filled %t, want %t", when, got, filled)
		}
		if got := known(); got != tenant {
			t.Errorf("%s: the namespace is %s, want %s", when, got, tenant)
		}
		if diff := cmp.Diff(strings.Join(calls, ", "), strings.Join(caches.calls, ", ")); diff != "" {
			t.Errorf("%s: watches (-want +got):\n%s", when, diff)
		}
	}
	adapt()
	expect("no selector", true, "unknown")
	if err := caches.Create(t.Context(), closed); err != nil {
		t.Fatal(err)
	}
	adapt()
	expect("a selector, before the list came", false, "unknown", "watch Namespace")
	caches.informer.synced = true
	expect("a selector", true, "a", "watch Namespace")
	adapt()
	expect("the same again", true, "a", "watch Namespace")
	if _, ok := n.Labels("absent"); ok {
		t.Error("a namespace that does not exist was found")
	}
	if err := caches.Delete(t.Context(), closed); err != nil {
		t.Fatal(err)
	}
	adapt()
	expect("no selector any more", true, "unknown", "watch Namespace", "end Namespace")
}
