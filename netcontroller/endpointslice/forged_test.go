// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestAForgedStatusIsTold(t *testing.T) {
	status := func(text string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationNetworkStatus] = text }
	}
	tests := map[string]struct {
		on        string
		edit      func(*corev1.Pod)
		want      []string
		published bool
	}{
		"the agent's": {"data", func(*corev1.Pod) {}, nil, true},
		"without the sandbox": {"data", func(p *corev1.Pod) { delete(p.Annotations, v1alpha1.AnnotationNetworkStatusSandbox) }, []string{
			"address 10.20.0.5 on network data: " + whyNotAgents, "address fd00:10:20::a14:5 on network data: " + whyNotAgents,
		}, false},
		"without the sandbox, of another network": {"data", func(p *corev1.Pod) {
			delete(p.Annotations, v1alpha1.AnnotationNetworkStatusSandbox)
			status(`[{"name":"shop/other","interface":"net1","ips":["192.0.2.1"]}]`)(p)
		}, nil, false},
		"unreadable, told once": {"data,management", status("{"), []string{"all that its annotation claims: reading network-status: unexpected end of JSON input"}, false},
		"unreadable, of a pod that ended": {"data", func(p *corev1.Pod) {
			status("{")(p)
			p.Status.Phase = corev1.PodFailed
		}, nil, false},
		"the cluster's, as kubelet has it":   {"default", status(`[{"name":"default","interface":"eth0","ips":["10.244.1.5","192.0.2.1"]}]`), nil, true},
		"the cluster's, unknown to kubelet":  {"default", status(`[{"name":"default","interface":"eth1","ips":["192.0.2.1"]}]`), []string{"address 192.0.2.1 on network default: " + whyNotKubelets}, true},
		"unreadable, on the cluster's alone": {"default", status("[1]"), []string{"all that its annotation claims: reading network-status: json: cannot unmarshal number into Go value of type podnetworks.Attachment"}, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			svc, pod, known := example(t)
			known.networks["default"] = clusterNetwork()
			if tt.on == "default" {
				pod.Annotations[v1alpha1.AnnotationNetworks] = "data@eth1"
				pod.Status.PodIP, pod.Status.PodIPs = "10.244.1.5", []corev1.PodIP{{IP: "10.244.1.5"}}
			}
			tt.edit(pod)
			var got []string
			out := publish(svc, parsed(t, tt.on), []*corev1.Pod{pod}, known)
			if published := len(out.groups[0].pods) > 0; published != tt.published {
				t.Errorf("published = %v", published)
			}
			for _, w := range out.withheld {
				got = append(got, w.text())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("withheld (-want +got):\n%s", diff)
			}
		})
	}
}

func TestADifferentUnreadableStatusIsAnotherDoubt(t *testing.T) {
	_, pod, _ := example(t)
	var seen []string
	for _, text := range []string{"{", "{{", "{", strings.Repeat("[", 10000)} {
		pod.Annotations[v1alpha1.AnnotationNetworkStatus] = text
		w := unreadable(pod, facts{status: readStatus})
		if len(w) != 1 || len(w[0].address) != 16 {
			t.Fatalf("%.20s: withheld %+v", text, w)
		}
		seen = append(seen, w[0].address)
	}
	if seen[0] != seen[2] || seen[0] == seen[1] || seen[0] == seen[3] {
		t.Errorf("digests %v: the first and the third alone are equal", seen)
	}
}
