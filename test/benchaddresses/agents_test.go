// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchaddresses

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/apiserver"
)

// starting bounds the pods that a node starts at once.
const starting = 8

// writesPolicy has the API server log every request that writes.
const writesPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: None
`

// BenchmarkWrites starts and ends pods on three nodes, each with an agent, and
// counts what the agents write, as the API server's audit log tells it.
func BenchmarkWrites(b *testing.B) {
	const nodeCount, networks = 3, 2
	pods := setting(b, "PODS", 1000)
	dir := b.TempDir()
	policy, log := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "audit.log")
	must(b, os.WriteFile(policy, []byte(writesPolicy), 0o600))
	c := startCluster(b, apiserver.WithAPIServerFlag("audit-policy-file", policy), apiserver.WithAPIServerFlag("audit-log-path", log))
	c.furnish(b, networks)
	built := buildPrograms(b)
	var nodes []*node
	for i := range nodeCount {
		nodes = append(nodes, c.startNode(b, built, fmt.Sprintf("worker%d", i), networks))
	}
	began := time.Now()
	run := c.startPods(b, nodes, pods, networks)
	c.awaitStatus(b, pods)
	started := agentWrites(b, log)
	say(b, "writes: %d pods with %d networks on %d nodes started in %.1fs; by the agents since their own start: %s", pods, networks, nodeCount, time.Since(began).Seconds(), started)
	c.endPods(b, run)
	time.Sleep(10 * time.Second) // the agents space their writes out
	ended := agentWrites(b, log)
	say(b, "writes: with the end of all pods: %s", ended)
	figure(b, "writes-per-pod", float64(started.total())/float64(pods))
	figure(b, "writes-per-pod-started-and-ended", float64(ended.total())/float64(pods))
}

// BenchmarkMemory fills a node with pods and measures its agent.
func BenchmarkMemory(b *testing.B) {
	c := startCluster(b)
	c.furnish(b, fullNodeNetworks)
	n := c.startNode(b, buildPrograms(b), "worker", fullNodeNetworks)
	time.Sleep(5 * time.Second)
	idle := n.memory(b, "VmRSS")
	c.startPods(b, []*node{n}, fullNodePods, fullNodeNetworks)
	c.awaitStatus(b, fullNodePods)
	say(b, "memory: agent without pods %.1f MiB, with %d pods in %d networks %.1f MiB, at most %.1f MiB", idle, fullNodePods, fullNodeNetworks, n.memory(b, "VmRSS"), n.memory(b, "VmHWM"))
	figure(b, "agent-rss-mib", n.memory(b, "VmRSS"))
}

// furnish makes so many networks, each on a physical network of its own.
func (c *cluster) furnish(b *testing.B, networks int) {
	b.Helper()
	must(b, c.Create(b.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}))
	for i := 1; i <= networks; i++ {
		physical := fmt.Sprintf("phy-net%d", i)
		must(b, c.Create(b.Context(), &v1alpha1.PhysicalNetwork{ObjectMeta: metav1.ObjectMeta{Name: physical}}))
		network := c.network(b, networkName(i), &v1alpha1.NetworkSpec{
			PhysicalNet: physical, Plugin: v1alpha1.PluginMacvlan, Subnet: v1alpha1.CIDR(fmt.Sprintf("10.%d.0.0/16", i)), Subnet6: v1alpha1.CIDR(fmt.Sprintf("fd00:10:%d::/64", i)),
		})
		if i == networks {
			c.awaitPolicies(b, network)
		}
	}
}

// running is a pod and where it runs.
type running struct {
	*corev1.Pod
	node *node
}

// startPods binds pods to the nodes in turn and has each attached to all
// networks.
func (c *cluster) startPods(b *testing.B, nodes []*node, count, networks int) []running {
	b.Helper()
	var names []string
	for i := 1; i <= networks; i++ {
		names = append(names, networkName(i))
	}
	pods := make([]running, count)
	namespaces := make([]string, count)
	for i := range namespaces {
		namespaces[i] = newNamespace(b)
	}
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(starting * len(nodes))
	for i := range pods {
		n := nodes[i%len(nodes)]
		group.Go(func() error {
			pod, err := c.newPod(ctx, n, fmt.Sprintf("web-%04d", i), strings.Join(names, ","))
			if err != nil {
				return err
			}
			pods[i] = running{pod, n}
			return n.add(ctx, pod, namespaces[i])
		})
	}
	must(b, group.Wait())
	return pods
}

// endPods does what kubelet does: DEL, and then the pod goes.
func (c *cluster) endPods(b *testing.B, pods []running) {
	b.Helper()
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(starting)
	for _, pod := range pods {
		group.Go(func() error {
			if err := pod.node.del(ctx, pod.Pod); err != nil {
				return err
			}
			return c.Delete(ctx, pod.Pod, client.GracePeriodSeconds(0))
		})
	}
	must(b, group.Wait())
}

// awaitStatus waits until every pod has its annotation.
func (c *cluster) awaitStatus(b *testing.B, count int) {
	b.Helper()
	await(b, "network-status of every pod", func() error {
		var pods metav1.PartialObjectMetadataList
		pods.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
		if err := c.List(context.WithoutCancel(b.Context()), &pods, client.InNamespace("default")); err != nil {
			return err
		}
		told := 0
		for i := range pods.Items {
			if pods.Items[i].Annotations[v1alpha1.AnnotationNetworkStatus] != "" {
				told++
			}
		}
		if told < count {
			return fmt.Errorf("%d of %d have it", told, count)
		}
		return nil
	})
}

// writes counts requests by verb, resource and answer.
type writes map[string]int

func (w writes) total() int {
	sum := 0
	for _, count := range w {
		sum += count
	}
	return sum
}

// String lists the counts.
func (w writes) String() string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(w)) {
		parts = append(parts, fmt.Sprintf("%s: %d", kind, w[kind]))
	}
	return strings.Join(parts, ", ")
}

// agentWrites reads an audit log. Every request to write counts, also one that
// was refused; those of everybody but the agents do not.
func agentWrites(b *testing.B, path string) writes {
	b.Helper()
	file, err := os.Open(path)
	must(b, err)
	defer func() { _ = file.Close() }()
	out := writes{}
	for lines := bufio.NewReader(file); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return out
		}
		var event struct {
			Verb             string
			ImpersonatedUser struct{ Username string }
			ObjectRef        struct{ Resource, Subresource string }
			ResponseStatus   struct{ Code int }
		}
		must(b, json.Unmarshal([]byte(line), &event))
		if event.ImpersonatedUser.Username != agentUser {
			continue
		}
		out[strings.TrimSuffix(fmt.Sprintf("%s %s/%s", event.Verb, event.ObjectRef.Resource, event.ObjectRef.Subresource), "/")+fmt.Sprintf(" %d", event.ResponseStatus.Code)]++
	}
}
