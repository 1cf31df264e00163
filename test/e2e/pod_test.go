// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// eventually repeats check until it is content; after the timeout the test
// fails with check's last complaint.
func eventually(t testing.TB, timeout time.Duration, what string, check func() error) {
	t.Helper()
	started := time.Now()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Since(started) > timeout {
			t.Fatalf("waited %s for %s: %v", timeout, what, err)
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// always is content if check is content for the whole time.
func always(t *testing.T, duration time.Duration, what string, check func() error) {
	t.Helper()
	for started := time.Now(); time.Since(started) < duration; time.Sleep(250 * time.Millisecond) {
		if err := check(); err != nil {
			t.Fatalf("%s did not last: %v", what, err)
		}
	}
}

// namespace makes one for the test. At the test's end it is removed with all
// that is in it; if the test failed, what is known about its pods is shown first.
func namespace(t testing.TB) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-", Labels: map[string]string{"netplane.io/e2e": "true"}}}
	if err := env.client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			dump(ctx, t, ns.Name)
		}
		// The namespace itself goes in its own time; the next test, and the
		// Networks of this one, only mind the pods.
		if err := env.client.Delete(ctx, ns); err != nil {
			t.Errorf("removing namespace %s: %v", ns.Name, err)
		}
		if err := env.client.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(ns.Name)); err != nil {
			t.Errorf("removing the pods of %s: %v", ns.Name, err)
		}
		awaitNoPods(ctx, t, ns.Name)
	})
	return ns.Name
}

func awaitNoPods(ctx context.Context, t testing.TB, ns string) {
	t.Helper()
	eventually(t, 120*time.Second, "the pods of "+ns+" to go", func() error {
		var left corev1.PodList
		if err := env.client.List(ctx, &left, client.InNamespace(ns)); err != nil {
			return err
		}
		if len(left.Items) > 0 {
			return fmt.Errorf("%d are there, such as %s on %s", len(left.Items), left.Items[0].Name, left.Items[0].Spec.NodeName)
		}
		return nil
	})
}

type podOption func(*corev1.Pod)

// on pins a pod to a node, through the scheduler.
func on(node string) podOption {
	return func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node} }
}

// by names the scheduler.
func by(scheduler string) podOption {
	return func(p *corev1.Pod) { p.Spec.SchedulerName = scheduler }
}

func labelled(key, value string) podOption {
	return func(p *corev1.Pod) { p.Labels[key] = value }
}

// webPort is where every pod of the tests answers with its name.
const webPort = 8080

// newPod is a pod with a web server; networks is its annotation, "" for none.
func newPod(ns, name, networks string, options ...podOption) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{"pod": name}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To[int64](1),
			AutomountServiceAccountToken:  ptr.To(false),
			Containers: []corev1.Container{{
				Name: "web", Image: "netplane/testbox:dev", ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"sh", "-c", fmt.Sprintf("mkdir -p /tmp/www && echo \"$HOSTNAME\" >/tmp/www/index.html && touch /tmp/ready && exec httpd -f -p %d -h /tmp/www", webPort)},
			}},
		},
	}
	if networks != "" {
		pod.Annotations = map[string]string{v1alpha1.AnnotationNetworks: networks}
		pod.Spec.SchedulerName = v1alpha1.DefaultSchedulerName
	}
	for _, option := range options {
		option(pod)
	}
	return pod
}

func createPod(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	// The namespace's service account takes a moment to appear.
	eventually(t, 15*time.Second, "pod "+pod.Name+" to be accepted", func() error {
		err := env.client.Create(t.Context(), pod)
		if err != nil && !strings.Contains(err.Error(), "serviceaccount") {
			t.Fatalf("creating pod %s: %v", pod.Name, err)
		}
		return err
	})
	return pod
}

func podReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// awaitRunning waits until a pod is ready and, if it asked for networks, until
// its network-status is there.
func awaitRunning(t *testing.T, pod *corev1.Pod, timeout time.Duration) {
	t.Helper()
	eventually(t, timeout, "pod "+pod.Name+" to run", func() error {
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if !podReady(pod) {
			return fmt.Errorf("phase %s on %q: %s", pod.Status.Phase, pod.Spec.NodeName, waitingReason(pod))
		}
		if pod.Annotations[v1alpha1.AnnotationNetworks] != "" && pod.Annotations[v1alpha1.AnnotationNetworkStatus] == "" {
			return fmt.Errorf("annotation network-status is missing")
		}
		return nil
	})
}

// run creates a pod and waits until it runs.
func run(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	createPod(t, pod)
	awaitRunning(t, pod, 60*time.Second)
	return pod
}

func waitingReason(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return c.Message
		}
	}
	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Waiting != nil {
			return s.State.Waiting.Reason + " " + s.State.Waiting.Message
		}
	}
	return ""
}

// awaitPending waits until the scheduler has said that it cannot place a pod,
// in words that hold all of want, in the pod's condition and in an event.
func awaitPending(t *testing.T, pod *corev1.Pod, want ...string) {
	t.Helper()
	missing := func(text string) error {
		for _, w := range want {
			if !strings.Contains(text, w) {
				return fmt.Errorf("want %q in %q", w, text)
			}
		}
		return nil
	}
	eventually(t, 20*time.Second, "pod "+pod.Name+" to be found unschedulable", func() error {
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if pod.Spec.NodeName != "" {
			t.Fatalf("pod %s was bound to %s", pod.Name, pod.Spec.NodeName)
		}
		return missing(waitingReason(pod))
	})
	eventually(t, 20*time.Second, "an event for pod "+pod.Name, func() error {
		var events corev1.EventList
		if err := env.client.List(t.Context(), &events, client.InNamespace(pod.Namespace)); err != nil {
			return err
		}
		err := fmt.Errorf("there is no FailedScheduling event")
		for i := range events.Items {
			e := &events.Items[i]
			if e.InvolvedObject.Name == pod.Name && e.Reason == "FailedScheduling" {
				if err = missing(e.Message); err == nil {
					return nil
				}
			}
		}
		return err
	})
}

// attachments are what the pod's network-status says, by interface.
func attachments(t *testing.T, pod *corev1.Pod) map[string]podnetworks.Attachment {
	t.Helper()
	list, err := podnetworks.ParseStatus(pod.Annotations[v1alpha1.AnnotationNetworkStatus])
	if err != nil {
		t.Fatalf("pod %s: %v", pod.Name, err)
	}
	out := map[string]podnetworks.Attachment{}
	for _, a := range list {
		out[a.Interface] = a
	}
	return out
}

// addressIn is the pod's IPv4 or IPv6 address on a network.
func addressIn(t *testing.T, pod *corev1.Pod, network string, v6 bool) string {
	t.Helper()
	for _, a := range attachments(t, pod) {
		if a.Name != network {
			continue
		}
		for _, ip := range a.IPs {
			if strings.Contains(ip, ":") == v6 {
				return ip
			}
		}
	}
	t.Fatalf("pod %s has no address in %s (IPv6: %t): %s", pod.Name, network, v6, pod.Annotations[v1alpha1.AnnotationNetworkStatus])
	return ""
}

// box is a running pod's first container, entered through its node and
// without the API server.
type box struct {
	pod  *corev1.Pod
	node string
	pid  int
}

func enter(t *testing.T, pod *corev1.Pod) box {
	t.Helper()
	if len(pod.Status.ContainerStatuses) == 0 {
		t.Fatalf("pod %s has no container", pod.Name)
	}
	id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
	for line := range strings.Lines(mustOnNode(t, pod.Spec.NodeName, "ctr", "--namespace=k8s.io", "tasks", "list")) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == id {
			pid, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return box{pod: pod, node: pod.Spec.NodeName, pid: pid}
		}
	}
	t.Fatalf("container %s of pod %s runs not on node %s", id, pod.Name, pod.Spec.NodeName)
	return box{}
}

// sh runs a command of the container in its file system and network.
func (b box) sh(t *testing.T, script string) (string, error) {
	t.Helper()
	return onNode(t.Context(), b.node, "", "nsenter", "--target", strconv.Itoa(b.pid), "--mount", "--net", "/bin/sh", "-c", script)
}

// links are the pod's interfaces, seen with the node's ip command.
func (b box) links(t *testing.T) map[string]ipLink {
	t.Helper()
	return parseLinks(t, mustOnNode(t, b.node, "nsenter", "--target", strconv.Itoa(b.pid), "--net", "ip", "-j", "-s", "addr"))
}

// mustReach fetches a page from inside the pod and compares it with want.
func (b box) mustReach(t *testing.T, host string, port int, want string) {
	t.Helper()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	eventually(t, 20*time.Second, fmt.Sprintf("pod %s to reach http://%s:%d", b.pod.Name, host, port), func() error {
		out, err := b.sh(t, fmt.Sprintf("wget -q -O - -T 3 http://%s:%d/", host, port))
		if err == nil && strings.TrimSpace(out) != want {
			err = fmt.Errorf("it answers %q, want %q", out, want)
		}
		return err
	})
}

// dump shows what a person would look at first.
func dump(ctx context.Context, t testing.TB, ns string) {
	t.Helper()
	var pods corev1.PodList
	nodes := map[string]bool{}
	if err := env.client.List(ctx, &pods, client.InNamespace(ns)); err == nil {
		for i := range pods.Items {
			p := &pods.Items[i]
			t.Logf("pod %s: %s on %q, IPs %v, %s\n  annotations %v", p.Name, p.Status.Phase, p.Spec.NodeName, p.Status.PodIPs, waitingReason(p), p.Annotations)
			if p.Spec.NodeName != "" && !podReady(p) {
				nodes[p.Spec.NodeName] = true
			}
		}
	}
	var events corev1.EventList
	if err := env.client.List(ctx, &events, client.InNamespace(ns)); err == nil {
		for i := range events.Items {
			if e := &events.Items[i]; e.Type != corev1.EventTypeNormal {
				t.Logf("event %s %s: %s (%d times)", e.InvolvedObject.Name, e.Reason, e.Message, e.Count)
			}
		}
	}
	var networks v1alpha1.NetworkList
	if err := env.client.List(ctx, &networks); err == nil {
		for i := range networks.Items {
			t.Logf("network %s: %+v", networks.Items[i].Name, networks.Items[i].Status)
		}
	}
	for node := range nodes {
		pod, err := agentPod(ctx, node)
		if err != nil || pod == nil {
			t.Logf("no agent on %s (%v)", node, err)
			continue
		}
		raw, err := env.clientset.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{TailLines: ptr.To[int64](40)}).DoRaw(ctx)
		t.Logf("the end of the log of %s on %s (%v):\n%s", pod.Name, node, err, raw)
	}
}
