// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// checkPlain holds a pod that asked for nothing to what it would be without netplane.
func checkPlain(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	for key := range pod.Annotations {
		if strings.Contains(key, "netplane.io") || key == v1alpha1.AnnotationNetworkStatus {
			t.Errorf("pod %s has got the annotation %s", pod.Name, key)
		}
	}
	if got := keys(enter(t, pod).links(t)); !slices.Equal(got, []string{"eth0", "lo"}) {
		t.Errorf("pod %s has the interfaces %v, want eth0 and lo", pod.Name, got)
	}
	var node corev1.Node
	if err := env.client.Get(t.Context(), client.ObjectKey{Name: pod.Spec.NodeName}, &node); err != nil {
		t.Fatal(err)
	}
	for _, ip := range pod.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		inRange := err == nil && slices.ContainsFunc(node.Spec.PodCIDRs, func(cidr string) bool {
			prefix, err := netip.ParsePrefix(cidr)
			return err == nil && prefix.Contains(addr)
		})
		if !inRange {
			t.Errorf("pod %s has the address %s, which is not of its node's %v", pod.Name, ip.IP, node.Spec.PodCIDRs)
		}
	}
}

// TestPlainPodsAreLeftAlone is the first part of promise e.
func TestPlainPodsAreLeftAlone(t *testing.T) {
	ns := namespace(t)
	for _, scheduler := range []string{corev1.DefaultSchedulerName, v1alpha1.DefaultSchedulerName} {
		t.Run(scheduler, func(t *testing.T) {
			pod := run(t, newPod(ns, "by-"+scheduler, "", by(scheduler)))
			checkPlain(t, pod)
		})
	}
}

func hostPort(port int32) podOption {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: webPort, HostPort: port}}
	}
}

// TestNodeWithoutItsAgent is the second part of promise e: while the agent of
// a node is stopped, plain pods start, hostPort works and the node stays
// Ready; pods with networks wait, and those that go leave nothing behind.
func TestNodeWithoutItsAgent(t *testing.T) {
	ns := namespace(t)
	node := env.node("worker2")
	leaving := run(t, newPod(ns, "leaving", "management@eth0", on(node)))
	staying := run(t, newPod(ns, "staying", "management@eth0", on(node)))
	since := nodeReadySince(t, node)

	start := stopAgent(t, node)
	eventually(t, 30*time.Second, "the cluster to know that the agent is gone", func() error {
		return conditionIs(t.Context(), node, v1alpha1.ConditionAgentReady, "False")
	})

	plain := run(t, newPod(ns, "plain", "", on(node), hostPort(18080)))
	checkPlain(t, plain)
	checkPlain(t, run(t, newPod(ns, "plain-by-ours", "", on(node), by(v1alpha1.DefaultSchedulerName))))
	reachHostPort(t, node, 18080, "plain")

	waits := createPod(t, newPod(ns, "waits", "management@eth0", on(node)))
	awaitPending(t, waits, "no ready netplane agent")

	if err := env.client.Delete(t.Context(), leaving); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "a pod with networks to go", func() error {
		err := env.client.Get(t.Context(), client.ObjectKeyFromObject(leaving), &corev1.Pod{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return errors.New("it is there")
	})
	if now := nodeReadySince(t, node); !now.Equal(since) {
		t.Errorf("the node's Ready condition changed at %s", now)
	}

	start()
	awaitRunning(t, waits, 60*time.Second)
	checkAttached(t, waits, map[string]string{"eth0": netManagement})
	checkAttached(t, staying, map[string]string{"eth0": netManagement})
	if leases := journalLeases(t, node, ns); len(leases) != 2 {
		t.Errorf("the journal of %s has the leases %v of the test's pods, want those of two pods", node, leases)
	}
	reachHostPort(t, node, 18080, "plain")
}

// nodeReadySince is when the node became Ready; it must be Ready.
func nodeReadySince(t *testing.T, name string) time.Time {
	t.Helper()
	var node corev1.Node
	if err := env.client.Get(t.Context(), client.ObjectKey{Name: name}, &node); err != nil {
		t.Fatal(err)
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if c.Status != corev1.ConditionTrue {
				t.Errorf("node %s is not Ready: %s", name, c.Message)
			}
			return c.LastTransitionTime.Time
		}
	}
	t.Fatalf("node %s has no condition Ready", name)
	return time.Time{}
}

// reachHostPort asks from the control plane, so that the way is that of a
// stranger to the node.
func reachHostPort(t *testing.T, node string, port int, want string) {
	t.Helper()
	url := fmt.Sprintf("http://%s:%d/", nodeIPv4(t, node), port)
	eventually(t, 20*time.Second, "hostPort "+url, func() error {
		out, err := onNode(t.Context(), env.node("control-plane"), "", "curl", "-s", "-m", "3", url)
		if err == nil && strings.TrimSpace(out) != want {
			err = fmt.Errorf("it answers %q, want %q", out, want)
		}
		return err
	})
}

// TestHostPortBesideNetworks: the wrapped configuration gets the capabilities
// of the runtime also when we add interfaces.
func TestHostPortBesideNetworks(t *testing.T) {
	ns := namespace(t)
	pod := run(t, newPod(ns, "both", "management", hostPort(18081)))
	checkAttached(t, pod, map[string]string{"net1": netManagement})
	reachHostPort(t, pod.Spec.NodeName, 18081, "both")
}

// TestPodOnMacvlanIsAFullPod is the third part of promise e: kubelet's probes,
// ClusterIPs, DNS, logs, exec and port-forward work on a pod whose eth0 is a
// macvlan.
func TestPodOnMacvlanIsAFullPod(t *testing.T) {
	ns := namespace(t)
	for _, suffix := range []string{"worker", "worker2"} {
		run(t, newPod(ns, "plain-"+suffix, "", on(env.node(suffix)), labelled("app", "plain")))
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "plain"},
		Spec: corev1.ServiceSpec{
			Selector:       map[string]string{"app": "plain"},
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyRequireDualStack),
			Ports:          []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(webPort)}},
		},
	}
	if err := env.client.Create(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	pod := newPod(ns, "macvlan", "management@eth0", on(env.node("worker")))
	pod.Spec.Containers[0].Command[2] = "echo hello; " + pod.Spec.Containers[0].Command[2]
	probe := &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(webPort)}}}
	pod.Spec.Containers[0].ReadinessProbe, pod.Spec.Containers[0].LivenessProbe = probe, probe.DeepCopy()
	run(t, pod) // it is ready only because kubelet reaches it
	checkAttached(t, pod, map[string]string{"eth0": netManagement})

	b := enter(t, pod)
	for _, host := range append(service.Spec.ClusterIPs, "plain", "plain."+ns+".svc.cluster.local") {
		t.Run("http://"+host, func(t *testing.T) { b.mustAnswer(t, host, 80, "plain-worker", "plain-worker2") })
	}
	logs, err := env.clientset.CoreV1().Pods(ns).GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err != nil || !strings.Contains(string(logs), "hello") {
		t.Errorf("logs: %q (%v), want hello", logs, err)
	}
	if out, err := execInPod(t.Context(), pod, "cat", "/tmp/www/index.html"); err != nil || strings.TrimSpace(out) != "macvlan" {
		t.Errorf("exec: %q (%v), want macvlan", out, err)
	}
	t.Run("port-forward", func(t *testing.T) { mustForward(t, pod, webPort, "macvlan") })
	if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
		t.Fatal(err)
	}
	if n := pod.Status.ContainerStatuses[0].RestartCount; n != 0 {
		t.Errorf("the liveness probe failed: %d restarts", n)
	}
}

// mustAnswer is mustReach for a Service with several pods behind it.
func (b box) mustAnswer(t *testing.T, host string, port int, oneOf ...string) {
	t.Helper()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	eventually(t, 20*time.Second, fmt.Sprintf("pod %s to reach http://%s:%d", b.pod.Name, host, port), func() error {
		out, err := b.sh(t, fmt.Sprintf("wget -q -O - -T 3 http://%s:%d/", host, port))
		if err == nil && !slices.Contains(oneOf, strings.TrimSpace(out)) {
			err = fmt.Errorf("it answers %q, want one of %v", out, oneOf)
		}
		return err
	})
}

// mustForward fetches a page from a pod by kubectl port-forward.
func mustForward(t *testing.T, pod *corev1.Pod, port int, want string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	forward := exec.CommandContext(ctx, "kubectl", "--context", "kind-"+env.name, "--namespace", pod.Namespace, "port-forward", "pod/"+pod.Name, fmt.Sprintf(":%d", port)) // #nosec G204 -- the tests' own command
	stdout, err := forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = forward.Wait() }()
	line, err := bufio.NewReader(stdout).ReadString('\n') // Forwarding from 127.0.0.1:40000 -> 8080
	fields := strings.Fields(line)
	if err != nil || len(fields) < 3 {
		t.Fatalf("kubectl port-forward says %q (%v)", line, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+fields[2]+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	if got, err := io.ReadAll(answer.Body); err != nil || strings.TrimSpace(string(got)) != want {
		t.Errorf("it answers %q (%v), want %q", got, err, want)
	}
}

// execInPod runs a command through the API server and kubelet.
func execInPod(ctx context.Context, pod *corev1.Pod, command ...string) (string, error) {
	return kubectl(ctx, append([]string{"--namespace", pod.Namespace, "exec", pod.Name, "--"}, command...)...)
}

// kubectl runs it as a person would and returns what it printed.
func kubectl(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "kubectl", append([]string{"--context", "kind-" + env.name}, args...)...).Output() // #nosec G204 -- the tests' own commands
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w", args[0], err)
	}
	return string(out), nil
}
