// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	sliceutil "k8s.io/endpointslice/util"
)

func TestAChildIsWhatItsNetworksGroupIs(t *testing.T) {
	svc, pod, known := example(t)
	svc.UID, svc.Labels, svc.Spec.ClusterIP = "u", map[string]string{"team": "shop"}, "10.96.0.10"
	svc.Spec.Type, svc.Spec.PublishNotReadyAddresses = corev1.ServiceTypeNodePort, true
	svc.Spec.Ports[0].NodePort = 30080
	pod.Spec.Hostname, pod.Spec.Subdomain = "web-0", "web"
	out := publish(svc, parsed(t, "http: [data]\nmetrics: [management]"), []*corev1.Pod{pod}, known)
	children, problems := childrenOf(svc, out.groups)
	if len(problems) > 0 || len(children) != 2 {
		t.Fatalf("%d children, problems %v", len(children), problems)
	}
	policy, yes := corev1.IPFamilyPolicyRequireDualStack, true
	want := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web-data", Namespace: "shop",
			Labels:          map[string]string{"netplane.io/service": "web", "netplane.io/network": "data"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: "web", UID: "u", Controller: &yes, BlockOwnerDeletion: &yes}},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: corev1.ClusterIPNone, IPFamilies: dual, IPFamilyPolicy: &policy,
			PublishNotReadyAddresses: true, Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}
	if diff := cmp.Diff(want, children[0]); diff != "" {
		t.Errorf("child (-want +got):\n%s", diff)
	}
	g := childGroup(svc, children[0], &out.groups[0])
	wantGroup := []told{{"data", dual, []string{"http"}, "netplane.io", []string{"web 10.20.0.5 True", "web fd00:10:20::a14:5 True"}}}
	if diff := cmp.Diff(wantGroup, tell([]group{g})); diff != "" {
		t.Errorf("group (-want +got):\n%s", diff)
	}
	for _, shadow := range g.pods {
		if !sliceutil.ShouldSetHostname(shadow, g.service) {
			t.Errorf("the pod with subdomain %q has no host name below %s", shadow.Spec.Subdomain, g.service.Name)
		}
	}
	for _, shadow := range out.groups[0].pods {
		if !sliceutil.ShouldSetHostname(shadow, out.groups[0].service) {
			t.Errorf("the pod with subdomain %q has lost its host name below %s", shadow.Spec.Subdomain, svc.Name)
		}
	}
	if pod.Spec.Subdomain != "web" || out.groups[0].service.Labels["team"] != "shop" {
		t.Error("making the child changed pod or Service")
	}
}

func TestANameThatIsTooLongIsSaid(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("w", 58)}}
	children, problems := childrenOf(svc, []group{{network: "data", service: svc}, {network: "data2", service: svc}})
	if len(children) != 1 || len(children[0].Name) != 63 {
		t.Errorf("children %v, want the one of 63 characters", children)
	}
	want := []problem{{"ServiceNameTooLong", `network "data2" has no name of its own: ` + svc.Name + "-data2 would have 64 characters, 63 are allowed: shorten the Service's name or the Network's"}}
	if diff := cmp.Diff(want, problems, cmp.AllowUnexported(problem{})); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestParentOfAsksForLabelAndOwner(t *testing.T) {
	parent := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", UID: "u"}}
	owned := []metav1.OwnerReference{*metav1.NewControllerRef(parent, corev1.SchemeGroupVersion.WithKind("Service"))}
	set := []metav1.OwnerReference{*metav1.NewControllerRef(parent, corev1.SchemeGroupVersion.WithKind("ReplicationController"))}
	label := map[string]string{"netplane.io/service": "web"}
	for name, tt := range map[string]struct {
		child corev1.Service
		want  string
	}{
		"a child":                {corev1.Service{ObjectMeta: metav1.ObjectMeta{Labels: label, OwnerReferences: owned}}, "web"},
		"a label alone":          {corev1.Service{ObjectMeta: metav1.ObjectMeta{Labels: label}}, ""},
		"an owner alone":         {corev1.Service{ObjectMeta: metav1.ObjectMeta{OwnerReferences: owned}}, ""},
		"another kind of owner":  {corev1.Service{ObjectMeta: metav1.ObjectMeta{Labels: label, OwnerReferences: set}}, ""},
		"the label of another's": {corev1.Service{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"netplane.io/service": "db"}, OwnerReferences: owned}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got, isChild := parentOf(&tt.child); got != tt.want || isChild != (tt.want != "") {
				t.Errorf("parent %q, %v; want %q", got, isChild, tt.want)
			}
		})
	}
}
