// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// template is newPod as a template, for workloads that name their pods.
func template(pod *corev1.Pod) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels, Annotations: pod.Annotations}, Spec: pod.Spec}
}

// TestServiceNames: a StatefulSet over two networks has all its names, by an
// untouched CoreDNS: the Service's, those of its ports, of its networks, and of
// each pod in each network.
func TestServiceNames(t *testing.T) {
	ns := namespace(t)
	const name = "db"
	svc := newService(ns, name)
	svc.Annotations[v1alpha1.AnnotationNetworks] = "http: [data]\nadmin: [management]\n"
	svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "admin", Port: 9000, TargetPort: intstr.FromInt32(adminPort)})
	if err := env.client.Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	pod := newPod(ns, name, "management,data", labelled("app", name))
	pod.Spec.Containers[0].Command[2] = fmt.Sprintf(`mkdir -p /tmp/admin && echo "admin of $HOSTNAME" >/tmp/admin/index.html && httpd -p %d -h /tmp/admin && `, adminPort) + pod.Spec.Containers[0].Command[2]
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: appsv1.StatefulSetSpec{
			Replicas: ptr.To[int32](2), ServiceName: name, PodManagementPolicy: appsv1.ParallelPodManagement,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: template(pod),
		},
	}
	if err := env.client.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	pods := awaitPods(t, ns, name, 2)
	awaitSlices(t, ns, name, pods)
	asker := enter(t, run(t, newPod(ns, "asker", "management,data")))
	checkNames(t, asker, name, "."+ns+zone, pods)
	checkTargets(t, asker, name, "."+ns+zone, pods)

	t.Run("all goes with the Service", func(t *testing.T) {
		if err := env.client.Delete(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
		eventually(t, 60*time.Second, "children and slices to be gone", func() error {
			var services corev1.ServiceList
			if err := env.client.List(t.Context(), &services, client.InNamespace(ns)); err != nil {
				return err
			}
			var left discoveryv1.EndpointSliceList
			if err := env.client.List(t.Context(), &left, client.InNamespace(ns)); err != nil {
				return err
			}
			if len(services.Items)+len(left.Items) > 0 {
				return fmt.Errorf("%d Services and %d slices are left", len(services.Items), len(left.Items))
			}
			return nil
		})
	})
}

// adminPort is another port than webPort, with another page.
const adminPort = 9091

// both are the addresses of pods on a network, of both families.
func both(t *testing.T, network string, pods ...*corev1.Pod) []string {
	t.Helper()
	var out []string
	for _, pod := range pods {
		out = append(out, addressIn(t, pod, network, false), addressIn(t, pod, network, true))
	}
	return out
}

// checkNames looks at A and AAAA of the Service, its networks and its pods.
func checkNames(t *testing.T, asker box, name, domain string, pods []*corev1.Pod) {
	t.Helper()
	awaitNames(t, asker, name+domain, append(both(t, netData, pods...), both(t, netManagement, pods...)...))
	for _, network := range []string{netData, netManagement} {
		child := name + "-" + network + domain
		awaitNames(t, asker, child, both(t, network, pods...))
		for _, pod := range pods {
			awaitNames(t, asker, pod.Name+"."+child, both(t, network, pod))
		}
	}
	for _, pod := range pods {
		awaitNames(t, asker, pod.Name+"."+name+domain, append(both(t, netData, pod), both(t, netManagement, pod)...))
	}
}

// checkTargets: SRV of a port leads to that port, on that port's network only,
// though the host's own name answers with both networks; and there the port's
// own page is.
func checkTargets(t *testing.T, asker box, name, domain string, pods []*corev1.Pod) {
	t.Helper()
	for _, c := range []struct {
		port, network, page string
		number              uint16
	}{
		{"_http._tcp.", netData, "", webPort},
		{"_admin._tcp.", netManagement, "admin of ", adminPort},
	} {
		for _, service := range []string{name, name + "-" + c.network} {
			var want []target
			for _, pod := range pods {
				want = append(want, target{c.number, pod.Name + "." + service + domain, both(t, c.network, pod)})
			}
			awaitTargets(t, asker, c.port+service+domain, want...)
		}
		for _, pod := range pods {
			for _, address := range both(t, c.network, pod) {
				asker.mustReach(t, address, int(c.number), c.page+pod.Name)
			}
		}
	}
	for port, network := range map[string]string{"_http._tcp.": netManagement, "_admin._tcp.": netData} {
		awaitNoName(t, asker, port+name+"-"+network+domain)
	}
}

// awaitNoName waits until a name has no SRV records.
func awaitNoName(t *testing.T, asker box, name string) {
	t.Helper()
	server := nameserver(t)
	eventually(t, 45*time.Second, "SRV of "+name+" to be none", func() error {
		message, err := asker.query(t, server, name, typeSRV)
		if err != nil {
			return err
		}
		if found, err := parseTargets(message); err == nil && len(found) > 0 {
			return fmt.Errorf("it leads to %v", found)
		}
		return nil
	})
}

// awaitPods waits until so many pods of an app run, and returns them by name.
func awaitPods(t *testing.T, ns, app string, count int) []*corev1.Pod {
	t.Helper()
	var out []*corev1.Pod
	eventually(t, 120*time.Second, fmt.Sprintf("%d pods of %s to run", count, app), func() error {
		var list corev1.PodList
		if err := env.client.List(t.Context(), &list, client.InNamespace(ns), client.MatchingLabels{"app": app}); err != nil {
			return err
		}
		out = nil
		for i := range list.Items {
			pod := &list.Items[i]
			if pod.DeletionTimestamp == nil && podReady(pod) && (pod.Annotations[v1alpha1.AnnotationNetworks] == "" || pod.Annotations[v1alpha1.AnnotationNetworkStatus] != "") {
				out = append(out, pod)
			}
		}
		if len(out) != count {
			return fmt.Errorf("%d of %d", len(out), len(list.Items))
		}
		return nil
	})
	slices.SortFunc(out, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// TestClusterIPOverARoutedNetwork: kube-proxy balances onto the pods' addresses
// on a network that the nodes reach, and onto nothing else.
func TestClusterIPOverARoutedNetwork(t *testing.T) {
	network := newNetwork(t, "e2e-routed", v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginBridge, Reachability: v1alpha1.ReachabilityRouted,
		Subnet: "10.48.0.0/24", Subnet6: "fd00:10:48::/64",
	})
	awaitNetwork(t, network.Name, metav1.ConditionTrue, v1alpha1.ReasonReady)
	ns := namespace(t)
	const name = "web"
	svc := newService(ns, name)
	svc.Annotations[v1alpha1.AnnotationNetworks] = network.Name
	svc.Spec.ClusterIP = ""
	svc.Spec.Ports[0].Port = 80
	if err := env.client.Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	// With pods on eth0 a node has an address in the network.
	var pods []*corev1.Pod
	for _, suffix := range []string{"worker", "worker3"} {
		pods = append(pods, createPod(t, newPod(ns, name+"-"+suffix, network.Name+"@eth0", on(env.node(suffix)), labelled("app", name))))
	}
	for _, pod := range pods {
		awaitRunning(t, pod, 60*time.Second)
	}
	eventually(t, 20*time.Second, "slices that kube-proxy sees", func() error {
		var list discoveryv1.EndpointSliceList
		if err := env.client.List(t.Context(), &list, client.InNamespace(ns), client.MatchingLabels{discoveryv1.LabelServiceName: name, v1alpha1.LabelNetwork: network.Name}); err != nil {
			return err
		}
		ready := 0
		for i := range list.Items {
			if hidden, ok := list.Items[i].Labels["service.kubernetes.io/service-proxy-name"]; ok {
				t.Fatalf("slice %s is hidden from kube-proxy for %q", list.Items[i].Name, hidden)
			}
			for _, e := range list.Items[i].Endpoints {
				if ptr.Deref(e.Conditions.Ready, false) {
					ready++
				}
			}
		}
		if ready != 4 {
			return fmt.Errorf("%d endpoints are ready, want 4", ready)
		}
		return nil
	})
	for _, ip := range svc.Spec.ClusterIPs {
		for _, suffix := range []string{"worker", "worker3"} {
			mustBalance(t, env.node(suffix), ip, pods)
		}
	}
	t.Run("a pod that goes is left out", func(t *testing.T) {
		if err := env.client.Delete(t.Context(), pods[0]); err != nil {
			t.Fatal(err)
		}
		for _, ip := range svc.Spec.ClusterIPs {
			mustBalance(t, env.node("worker3"), ip, pods[1:])
		}
	})
}

// mustBalance asks a ClusterIP on a node until 12 answers in a row were of the
// pods, and each of them had answered.
func mustBalance(t *testing.T, node, ip string, pods []*corev1.Pod) {
	t.Helper()
	if strings.Count(ip, ":") > 1 { // else it may be IPv4 with a port
		ip = "[" + ip + "]"
	}
	eventually(t, 30*time.Second, fmt.Sprintf("http://%s on %s to be answered by %d pods", ip, node, len(pods)), func() error {
		seen := map[string]bool{}
		for range 12 {
			out, err := onNode(t.Context(), node, "", "busybox", "wget", "-q", "-O", "-", "-T", "3", "http://"+ip+"/")
			if err != nil {
				return err
			}
			seen[strings.TrimSpace(out)] = true
		}
		for _, pod := range pods {
			if !seen[pod.Name] {
				return fmt.Errorf("answers of %v, want %s among them", keys(seen), pod.Name)
			}
		}
		if len(seen) != len(pods) {
			return fmt.Errorf("answers of %v", keys(seen))
		}
		return nil
	})
}
