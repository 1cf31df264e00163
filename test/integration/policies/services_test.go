// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package policies

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestTheControllerWritesChildrenOfServicesOnly(t *testing.T) {
	controller, err := env.as(controllerUser, nil)
	if err != nil {
		t.Fatal(err)
	}
	parent := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}}
	create(t, parent)
	child := func(edit func(*corev1.Service)) *corev1.Service {
		svc := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{
				Name: "web-data", Namespace: "default", Labels: map[string]string{v1alpha1.LabelService: "web"},
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(parent, corev1.SchemeGroupVersion.WithKind("Service"))},
			},
			Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone},
		}
		if edit != nil {
			edit(svc)
		}
		return svc
	}
	const (
		childrenOnly = "Service default/web-data: netplane-controller may write children of Services only"
		headless     = "Service default/web-data: a child is headless and has no selector"
	)
	for name, tt := range map[string]struct {
		edit func(*corev1.Service)
		want string
	}{
		"a child":           {nil, ""},
		"without label":     {func(s *corev1.Service) { s.Labels = nil }, childrenOnly},
		"of another":        {func(s *corev1.Service) { s.Labels[v1alpha1.LabelService] = "other" }, childrenOnly},
		"without owner":     {func(s *corev1.Service) { s.OwnerReferences = nil }, childrenOnly},
		"with a selector":   {func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "a"} }, headless},
		"with a cluster IP": {func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.Ports = "", []corev1.ServicePort{{Port: 80}} }, headless},
	} {
		t.Run(name, func(t *testing.T) {
			check(t, controller.Create(t.Context(), child(tt.edit), client.DryRunAll), tt.want)
		})
	}

	t.Run("a foreign one", func(t *testing.T) {
		foreign := child(func(s *corev1.Service) { s.Labels, s.OwnerReferences = nil, nil })
		create(t, foreign)
		taken := foreign.DeepCopy()
		taken.Labels, taken.OwnerReferences = child(nil).Labels, child(nil).OwnerReferences
		check(t, controller.Update(t.Context(), taken), childrenOnly)
		check(t, controller.Delete(t.Context(), foreign), childrenOnly)
	})
	t.Run("its own", func(t *testing.T) {
		own := child(nil)
		if err := controller.Create(t.Context(), own); err != nil {
			t.Fatal(err)
		}
		own.Spec.PublishNotReadyAddresses = true
		check(t, controller.Update(t.Context(), own), "")
		own.Labels = nil
		check(t, controller.Update(t.Context(), own), childrenOnly)
		check(t, controller.Delete(t.Context(), own), "")
	})
}
