// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchagent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/figures"
	"github.com/netplane/netplane/test/fleet"
	"github.com/netplane/netplane/test/isolated"
)

// The cluster: its Networks, on so many physical networks that the node has a
// NIC for each; the pods of the node, each with so many of the Networks.
const (
	networks      = 10
	nics          = 4
	pods          = 250
	networksOfPod = 4
)

// otherNamespaces and writers shape what is in the cluster beside the node.
const (
	otherNamespaces = 500
	writers         = 32
)

// cachedObjects is the agent's own metric.
const cachedObjects = "netplane_agent_cached_objects"

// The agent sees only the NICs that the benchmark makes.
func TestMain(m *testing.M) { os.Exit(isolated.Main(m, isolated.Loopback)) }

// BenchmarkAgent fills one node of a large cluster with pods and looks at its
// agent.
func BenchmarkAgent(b *testing.B) {
	nodes := figures.Setting(b, "NODES", 5000)
	c := fleet.Start(b)
	c.Furnish(b, networks, nics)
	began := time.Now()
	populate(b, c, nodes-1)
	figures.Say(b, "agent: a cluster of %d nodes, each with a NodeNetwork, a block and a pod, %d Networks and %d namespaces made in %.0fs", nodes, networks, otherNamespaces, time.Since(began).Seconds())
	n := c.StartNode(b, fleet.BuildPrograms(b), "worker", nics)
	time.Sleep(5 * time.Second)
	idle := n.Memory(b, "VmRSS")
	c.StartPods(b, []*fleet.Node{n}, pods, networksOfPod)
	c.AwaitStatus(b, pods)
	full := n.Memory(b, "VmRSS") // before its metrics are asked for, which costs some
	figures.Say(b, "agent: without pods %.1f MiB, with %d pods in %d networks %.1f MiB, at most %.1f MiB; of it memory of its own %.1f MiB, the rest the program's file",
		idle, pods, networksOfPod, full, n.Memory(b, "VmHWM"), n.Memory(b, "RssAnon"))
	for _, name := range []string{"heap_alloc", "heap_inuse", "heap_idle", "heap_released", "stack_inuse", "sys", "next_gc"} {
		figures.Say(b, "agent: %s %.1f MiB", name, n.Metric(b, "go_memstats_"+name+"_bytes")/(1<<20))
	}
	figures.Say(b, "agent: goroutines %.0f, threads %.0f", n.Metric(b, "go_goroutines"), n.Metric(b, "go_threads"))
	for _, kind := range []string{"Pod", "Node", "NodeNetwork", "IPBlock", "IPClaim", "Network", "PhysicalNetwork", "Namespace", "ServiceCIDR"} {
		figures.Say(b, "agent: caches %.0f of kind %s", n.Metric(b, cachedObjects, fmt.Sprintf("kind=%q", kind)), kind)
	}
	figures.Figure(b, "agent", "rss-mib", full)
	figures.Figure(b, "agent", "watch-objects", n.Metric(b, cachedObjects))
}

// populate makes the other nodes of the cluster and what they have.
func populate(b *testing.B, c *fleet.Cluster, nodes int) {
	b.Helper()
	var list v1alpha1.NetworkList
	fleet.Must(b, c.List(b.Context(), &list))
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(writers)
	for i := range otherNamespaces {
		group.Go(func() error {
			return c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("team-%03d", i)}})
		})
	}
	for i := range nodes {
		group.Go(func() error { return otherNode(ctx, c, i, &list.Items[i%networks]) })
	}
	fleet.Must(b, group.Wait())
}

// otherNode makes one node with a NodeNetwork, a block of the network and a pod.
func otherNode(ctx context.Context, c client.Client, i int, network *v1alpha1.Network) error {
	name := fmt.Sprintf("node-%05d", i)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := c.Create(ctx, node); err != nil {
		return fmt.Errorf("making node %s: %w", name, err)
	}
	block, err := blockOf(network, i/networks)
	if err != nil {
		return err
	}
	for _, object := range []client.Object{
		&v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}},
		&v1alpha1.IPBlock{
			ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName(network.Name, block)},
			Spec:       v1alpha1.IPBlockSpec{Network: network.Name, NetworkUID: network.UID, CIDR: v1alpha1.CIDR(block.String()), NodeName: name, NodeUID: node.UID},
		},
		&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "on-" + name},
			Spec:       corev1.PodSpec{NodeName: name, ServiceAccountName: "default", Containers: []corev1.Container{{Name: "c", Image: "web"}}},
		},
	} {
		if err := c.Create(ctx, object); err != nil {
			return fmt.Errorf("making what %s has: %w", name, err)
		}
	}
	return nil
}

// blockOf is a network's block at this place.
func blockOf(network *v1alpha1.Network, place int) (netip.Prefix, error) {
	plan, err := addressing.NewPlan(network.Name, &network.Spec)
	if err != nil {
		return netip.Prefix{}, err
	}
	// Candidates begins elsewhere for each name; with one name they are in order.
	for block := range plan.Candidates("other") {
		if place == 0 {
			return block, nil
		}
		place--
	}
	return netip.Prefix{}, fmt.Errorf("network %s has too few blocks", network.Name)
}
