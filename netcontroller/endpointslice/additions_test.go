// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestAdditions(t *testing.T) {
	service := func(selector map[string]string, annotation, reason string) *corev1.Service {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "1"}, Spec: corev1.ServiceSpec{Selector: maps.Clone(selector)}}
		if annotation != "" {
			svc.Annotations = map[string]string{v1alpha1.AnnotationNetworks: annotation}
		}
		if reason != "" {
			svc.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionEndpointsByNetwork, Reason: reason}}
		}
		return svc
	}
	external, another := service(plain, "data", ""), service(plain, "data", "")
	external.Spec.Type, another.UID = corev1.ServiceTypeExternalName, "2"
	for name, tt := range map[string]struct {
		before, now *corev1.Service
		cached      *corev1.Service // what is asked about then, if not now
		want, later bool            // and about now once more
	}{
		"added":                         {before: service(plain, "", ""), now: service(plain, "data", ""), want: true, later: true},
		"the cache shows the condition": {before: service(plain, "", ""), now: service(plain, "data", ""), cached: service(plain, "data", "AwaitingSelectorKey")},
		"it was refused":                {before: service(plain, "", ""), now: service(plain, "data", ""), cached: service(plain, "data", "SelectorKeyMissing")},
		"malformed":                     {before: service(plain, "", ""), now: service(plain, "data,", ""), cached: service(plain, "data,", "InvalidAnnotation"), want: true, later: true},
		"taken back":                    {before: service(plain, "", ""), now: service(plain, "data", ""), cached: service(plain, "", "")},
		"the key came in":               {before: service(plain, "", ""), now: service(plain, "data", ""), cached: service(keyed, "data", "")},
		"changed":                       {before: service(plain, "data", ""), now: service(plain, "management", "")},
		"with the key":                  {before: service(plain, "", ""), now: service(keyed, "data", "")},
		"the key removed meanwhile":     {before: service(keyed, "", ""), now: service(plain, "data", "")},
		"no selector":                   {before: service(nil, "", ""), now: service(nil, "data", "")},
		"a name without endpoints":      {before: service(plain, "", ""), now: external},
		"another of its name":           {before: service(plain, "", ""), now: another},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAdditions()
			a.note(tt.before, tt.now)
			if tt.cached == nil {
				tt.cached = tt.now
			}
			if got := a.has(tt.cached); got != tt.want {
				t.Errorf("has = %v, want %v", got, tt.want)
			}
			if got := a.has(tt.now); got != tt.later {
				t.Errorf("has later = %v, want %v", got, tt.later)
			}
		})
	}
}
