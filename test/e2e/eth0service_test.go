// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/netplane/netplane/api/v1alpha1"
)

// webService makes an ordinary Service of the pods that are labelled app=web.
func webService(t *testing.T, ns string) *corev1.Service {
	t.Helper()
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
	return service
}

// TestClusterIPOfPodsOnMacvlan: behind an ordinary Service stand pods on two nodes
// whose eth0 is a macvlan. Both nodes, pods of the cluster's network there, and the
// pods themselves reach all of them by its ClusterIPs, and by its NodePort.
func TestClusterIPOfPodsOnMacvlan(t *testing.T) {
	ns := namespace(t)
	service := webService(t, ns)
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

// TestANodesWayByTheExamplesDaemonSet: a node without a pod of the Network on eth0 has no
// way to those of others, until the example gives it one.
func TestANodesWayByTheExamplesDaemonSet(t *testing.T) {
	newNetwork(t, "e2e-accessed", v1alpha1.NetworkSpec{PhysicalNet: physManagement, Plugin: v1alpha1.PluginMacvlan, Subnet: "10.80.0.0/16", Subnet6: "fd00:10:80::/64"})
	ns := namespace(t)
	service := webService(t, ns)
	web := []*corev1.Pod{run(t, newPod(ns, "web", "e2e-accessed@eth0", on(env.node("worker")), labelled("app", "web")))}
	node := env.node("worker3")
	plain := enter(t, run(t, newPod(ns, "plain", "", on(node))))
	if out, err := plain.sh(t, "wget -q -O - -T 3 http://"+service.Spec.ClusterIP+"/"); err == nil {
		t.Errorf("answered %q without a way", out)
	}

	raw, err := os.ReadFile("../../manifests/examples/node-access.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var access appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(raw, &access); err != nil {
		t.Fatal(err)
	}
	access.Namespace = ns
	access.Spec.Template.Annotations[v1alpha1.AnnotationNetworks] = "e2e-accessed@eth0"
	if err := env.client.Create(t.Context(), &access); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the DaemonSet to have a pod on each node with the NIC", func() error {
		err := env.client.Get(t.Context(), client.ObjectKeyFromObject(&access), &access)
		if s := &access.Status; err == nil && (s.DesiredNumberScheduled != 3 || s.NumberReady != 3) {
			return fmt.Errorf("%d of %d ready, want 3", s.NumberReady, s.DesiredNumberScheduled)
		}
		return err
	})
	for _, ip := range service.Spec.ClusterIPs {
		mustBalance(t, node, ip, web)
		plain.mustBalance(t, ip, web)
	}
	mustBalance(t, node, fmt.Sprintf("%s:%d", nodeIPv4(t, node), service.Spec.Ports[0].NodePort), web)
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
