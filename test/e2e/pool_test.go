// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// poolNetwork has two blocks of four free addresses each, for the two nodes
// with a NIC for data. The tests of what is given back share it, as removing a
// Network takes its time: each begins with taking every address of it, which
// fails if the one before lost some. TestMain removes it.
const poolNetwork = "e2e-pool"

func poolSpec() v1alpha1.NetworkSpec {
	return v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginBridge, BlockSize: 8,
		Subnet: "10.35.0.0/28", Subnet6: "fd00:10:35::/64",
		ExcludeRanges: []v1alpha1.IPRange{"10.35.0.6-10.35.0.7", "10.35.0.13-10.35.0.14"},
	}
}

// removePool is for the end of all tests; the blocks go in their own time.
func (c *cluster) removePool(ctx context.Context) error {
	err := c.client.Delete(ctx, &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: poolNetwork}})
	return client.IgnoreNotFound(err)
}

// pool is one test's view of the pool.
type pool struct {
	ns       string
	capacity int
}

// newPool makes a namespace for a test of the pool, and from now to the test's
// end looks for addresses in two places.
func newPool(t *testing.T) *pool {
	t.Helper()
	eventually(t, 120*time.Second, "Network "+poolNetwork, func() error {
		n := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: poolNetwork}, Spec: poolSpec()}
		err := env.client.Create(t.Context(), n)
		if apierrors.IsAlreadyExists(err) {
			err = env.client.Get(t.Context(), client.ObjectKeyFromObject(n), n)
		}
		if err == nil && n.DeletionTimestamp != nil {
			err = errors.New("that of an earlier run is not gone yet")
		}
		return err
	})
	awaitNetwork(t, poolNetwork, metav1.ConditionTrue, v1alpha1.ReasonReady)
	_, plan := planOf(t, poolNetwork)
	p := &pool{ns: namespace(t), capacity: int(plan.TotalCapacity())}
	watchForDuplicates(t)
	return p
}

// annotation makes every other pod one with a Network on eth0, whose host side
// is more than a link.
func (*pool) annotation(i int) string {
	if i%2 == 0 {
		return netManagement + "@eth0," + poolNetwork + "@eth1"
	}
	return poolNetwork
}

// create makes count pods and does not wait for them.
func (p *pool) create(t *testing.T, prefix string, count int, options ...podOption) []*corev1.Pod {
	t.Helper()
	var pods []*corev1.Pod
	for i := range count {
		pods = append(pods, createPod(t, newPod(p.ns, fmt.Sprintf("%s%d", prefix, i), p.annotation(i), options...)))
	}
	return pods
}

// await waits until pods run and holds each to what it asked for.
func (*pool) await(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	for _, pod := range pods {
		awaitRunning(t, pod, 120*time.Second)
		checkAttached(t, pod, asked(t, pod))
	}
}

// fill takes every address of the pool.
func (p *pool) fill(t *testing.T, prefix string, options ...podOption) []*corev1.Pod {
	t.Helper()
	pods := p.create(t, prefix, p.capacity, options...)
	p.await(t, pods)
	p.checkFull(t)
	return pods
}

// checkFull wants each address of the pool in exactly one living namespace,
// and no pod to have been refused for want of one after it was bound.
func (p *pool) checkFull(t *testing.T) {
	t.Helper()
	eventually(t, 15*time.Second, "every address to be in use", func() error {
		if got, err := poolAddresses(t.Context()); err != nil || len(got) != p.capacity {
			return fmt.Errorf("in use are %v (%w), want %d", got, err, p.capacity)
		}
		return nil
	})
	if refused := sandboxFailures(t, p.ns, "no free address"); len(refused) > 0 {
		t.Errorf("bound pods were refused: %v", refused)
	}
}

// checkReclaimed removes the pods and waits until nothing of them is left.
func (p *pool) checkReclaimed(t *testing.T) {
	t.Helper()
	if err := env.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(p.ns)); err != nil {
		t.Fatal(err)
	}
	awaitNoPods(t.Context(), t, p.ns)
	for _, node := range workers() {
		eventually(t, 60*time.Second, "node "+node+" to be clean", func() error {
			return errors.Join(traces(t, node, p.ns), strayLinks(t, node))
		})
	}
	if got, err := poolAddresses(t.Context()); err != nil || len(got) > 0 {
		t.Errorf("in use are still %v (%v)", got, err)
	}
}

// onNodeOf are the pods on the node of the first of them, and the others.
func onNodeOf(pods []*corev1.Pod) (node string, there, elsewhere []*corev1.Pod) {
	node = pods[0].Spec.NodeName
	for _, pod := range pods {
		if pod.Spec.NodeName == node {
			there = append(there, pod)
		} else {
			elsewhere = append(elsewhere, pod)
		}
	}
	return node, there, elsewhere
}

// asked maps the interfaces that a pod asks for to their Networks.
func asked(t *testing.T, pod *corev1.Pod) map[string]string {
	t.Helper()
	requests, err := podnetworks.Parse(pod.Annotations[v1alpha1.AnnotationNetworks])
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for i := range requests {
		out[requests[i].IfName] = requests[i].Name
	}
	return out
}

// place is where an address is.
type place struct{ node, netns, ifname string }

// living are the addresses in all network namespaces of pods, read in them.
func living(ctx context.Context) (map[string][]place, error) {
	const script = `cd /run/netns && for n in *; do a=$(ip -n "$n" -j addr 2>/dev/null) && printf '%s %s\n' "$n" "$a"; done; true`
	out := map[string][]place{}
	for _, node := range workers() {
		text, err := onNode(ctx, node, "", "sh", "-c", script)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(text) {
			netns, raw, _ := strings.Cut(line, " ")
			links, err := decodeLinks(raw)
			if err != nil {
				return nil, fmt.Errorf("namespace %s of %s: %w", netns, node, err)
			}
			for name, link := range links {
				for _, address := range link.global() {
					address, _, _ = strings.Cut(address, "/")
					out[address] = append(out[address], place{node, netns, name})
				}
			}
		}
	}
	return out, nil
}

// poolAddresses are the IPv4 addresses of the pool that living namespaces have.
func poolAddresses(ctx context.Context) ([]string, error) {
	addresses, err := living(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for address, places := range addresses {
		if strings.HasPrefix(address, "10.35.0.") {
			out = append(out, fmt.Sprint(address, places))
		}
	}
	slices.Sort(out)
	return out, nil
}

// duplicates are the addresses that are in two places. The namespaces are read
// one after the other, while addresses move on: so two looks must agree.
func duplicates(ctx context.Context) ([]string, error) {
	first, err := living(ctx)
	if err != nil || !slices.ContainsFunc(keys(first), func(a string) bool { return len(first[a]) > 1 }) {
		return nil, err
	}
	second, err := living(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for address, places := range first {
		both := slices.DeleteFunc(slices.Clone(places), func(p place) bool { return !slices.Contains(second[address], p) })
		if len(both) > 1 {
			out = append(out, fmt.Sprint(address, both))
		}
	}
	return out, nil
}

// watchForDuplicates looks for them until the test ends. A node or a runtime
// that is down is none of its business.
func watchForDuplicates(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	type outcome struct {
		looks int
		found []string
	}
	done := make(chan outcome)
	go func() {
		var o outcome
		for ctx.Err() == nil && len(o.found) == 0 {
			if found, err := duplicates(ctx); err == nil {
				o.looks++
				o.found = found
			}
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
		done <- o
	}()
	t.Cleanup(func() {
		cancel()
		o := <-done
		if len(o.found) > 0 {
			t.Errorf("addresses were in two living namespaces: %v", o.found)
		}
		t.Logf("looked %d times for an address in two namespaces", o.looks)
	})
}

// sandboxRecord is what an agent knows of a pod's sandbox.
type sandboxRecord struct {
	ContainerID, NetNS, PodNamespace, PodName, State string
	PodUID                                           types.UID
	Attachments                                      []podnetworks.Attachment
}

// sandboxes are the records of a namespace's pods on a node, by pod name; of
// two for one pod, which a replaced sandbox leaves for a moment, neither.
func sandboxes(t *testing.T, node, ns string) map[string]sandboxRecord {
	t.Helper()
	text := mustOnNode(t, node, "sh", "-c", "cat /run/netplane/sandboxes/*.json 2>/dev/null; true")
	out, seen := map[string]sandboxRecord{}, map[string]bool{}
	for decoder := json.NewDecoder(strings.NewReader(text)); ; {
		var r sandboxRecord
		err := decoder.Decode(&r)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("reading the sandboxes of %s: %v", node, err)
		}
		if r.PodNamespace != ns {
			continue
		}
		if out[r.PodName] = r; seen[r.PodName] {
			delete(out, r.PodName)
		}
		seen[r.PodName] = true
	}
}

// awaitAnew waits until a pod runs again, in another container than before, and
// network-status tells of its new sandbox.
func awaitAnew(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	uid, container := pod.UID, pod.Status.ContainerStatuses[0].ContainerID
	eventually(t, 120*time.Second, "pod "+pod.Name+" to run anew", func() error {
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if now := pod.Status.ContainerStatuses[0].ContainerID; pod.UID != uid || now == container || !podReady(pod) {
			return fmt.Errorf("it is UID %s, container %s, ready: %t; it was %s, %s", pod.UID, now, podReady(pod), uid, container)
		}
		told, want := attachments(t, pod), sandboxes(t, pod.Spec.NodeName, pod.Namespace)[pod.Name].Attachments
		if len(want) == 0 {
			return errors.New("the agent has no record of it, or two")
		}
		for _, a := range want {
			if !slices.Equal(told[a.Interface].IPs, a.IPs) {
				return fmt.Errorf("network-status has %v for %s, the agent %v", told[a.Interface].IPs, a.Interface, a.IPs)
			}
		}
		return nil
	})
	checkAttached(t, pod, asked(t, pod))
}

// checkUndisturbed wants a pod in the container in which it was.
func checkUndisturbed(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	before := pod.Status.ContainerStatuses[0].ContainerID
	if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
		t.Fatal(err)
	}
	if now := pod.Status.ContainerStatuses[0].ContainerID; now != before {
		t.Errorf("pod %s on %s: container %s, was %s", pod.Name, pod.Spec.NodeName, now, before)
	}
	checkAttached(t, pod, asked(t, pod))
}

// strayLinks complains about links for pods that belong to no sandbox.
func strayLinks(t *testing.T, node string) error {
	t.Helper()
	records := mustOnNode(t, node, "sh", "-c", "cat /run/netplane/sandboxes/*.json 2>/dev/null; true")
	for _, link := range nodeLinks(t, node) {
		if !strings.Contains(records, link) {
			return fmt.Errorf("link %s belongs to no sandbox", link)
		}
	}
	return nil
}

// spooled counts the DELs that wait for a node's agent.
func spooled(t *testing.T, node string) int {
	t.Helper()
	return len(strings.Fields(mustOnNode(t, node, "sh", "-c", "ls /run/netplane/spool 2>/dev/null; true")))
}

// sandboxFailures are kubelet's events about sandboxes that could not be made,
// as far as they hold the words.
func sandboxFailures(t *testing.T, ns, words string) []string {
	t.Helper()
	var events corev1.EventList
	if err := env.client.List(t.Context(), &events, client.InNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	var out []string
	for i := range events.Items {
		if e := &events.Items[i]; e.Reason == "FailedCreatePodSandBox" && strings.Contains(e.Message, words) {
			out = append(out, e.InvolvedObject.Name+": "+e.Message)
		}
	}
	return out
}
