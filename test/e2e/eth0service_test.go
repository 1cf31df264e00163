// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// TestClusterIPOfPodsOnMacvlan: behind an ordinary Service stand pods on two nodes
// whose eth0 is a macvlan. Both nodes, pods of the cluster's network there, and the
// pods themselves reach all of them by its ClusterIPs, and by its NodePort.
func TestClusterIPOfPodsOnMacvlan(t *testing.T) {
	ns := namespace(t)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "web"},
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyRequireDualStack),
			Ports:          []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(webPort)}},
		},
	}
	if err := env.client.Create(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	suffixes := []string{"worker", "worker2"}
	var pods []*corev1.Pod
	var boxes []box
	for _, suffix := range suffixes {
		pods = append(pods, run(t, newPod(ns, "web-"+suffix, "management@eth0", on(env.node(suffix)), labelled("app", "web"))))
	}
	for i, suffix := range suffixes {
		boxes = append(boxes, enter(t, pods[i]), enter(t, run(t, newPod(ns, "plain-"+suffix, "", on(env.node(suffix))))))
	}
	for _, ip := range service.Spec.ClusterIPs {
		for _, suffix := range suffixes {
			mustBalance(t, env.node(suffix), ip, pods)
		}
		for _, b := range boxes {
			b.mustBalance(t, ip, pods)
		}
	}
	for _, suffix := range suffixes {
		node := env.node(suffix)
		mustBalance(t, node, fmt.Sprintf("%s:%d", nodeIPv4(t, node), service.Spec.Ports[0].NodePort), pods)
	}
}

// mustBalance is mustBalance from inside a pod.
func (b box) mustBalance(t *testing.T, ip string, pods []*corev1.Pod) {
	t.Helper()
	if strings.Count(ip, ":") > 1 {
		ip = "[" + ip + "]"
	}
	eventually(t, 30*time.Second, fmt.Sprintf("pod %s to be answered by %d pods at http://%s", b.pod.Name, len(pods), ip), func() error {
		seen := map[string]bool{}
		for range 12 {
			out, err := b.sh(t, "wget -q -O - -T 3 http://"+ip+"/")
			if err != nil {
				return err
			}
			seen[strings.TrimSpace(out)] = true
		}
		if len(seen) != len(pods) {
			return fmt.Errorf("answers of %v", keys(seen))
		}
		return nil
	})
}
