// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchaddresses

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/test/figures"
	"github.com/netplane/netplane/test/fleet"
)

// cluster is where the nodes claim.
type cluster struct{ *fleet.Cluster }

// BenchmarkClaims has many nodes claim a block of a new Network, as they do when
// it becomes Ready: with a connection for each node, as agents have; with one
// that all share; and all in the same moment, without leaving each other time.
func BenchmarkClaims(b *testing.B) {
	nodes := figures.Setting(b, "NODES", 5000)
	c := cluster{fleet.Start(b)}
	each := func() *net.Dialer { return &net.Dialer{} }
	own := c.claimRound(b, "spread", "10.0.0.0/8", nodes, nodes, each)
	shared := c.claimRound(b, "shared-connection", "11.0.0.0/8", nodes, nodes, nil)
	herd := c.claimRound(b, "at-once", "12.0.0.0/8", nodes, 0, each)
	figure(b, fmt.Sprintf("claim-%d-nodes-s", nodes), own.Seconds())
	figure(b, fmt.Sprintf("claim-%d-nodes-shared-connection-s", nodes), shared.Seconds())
	figure(b, fmt.Sprintf("claim-%d-nodes-at-once-s", nodes), herd.Seconds())
}

// claimRound returns the time until every node has a block of the network, whose
// status tells of so many nodes.
func (c cluster) claimRound(b *testing.B, name, subnet string, count, known int, dialer func() *net.Dialer) time.Duration {
	b.Helper()
	network := c.Network(b, name, &v1alpha1.NetworkSpec{PhysicalNet: "phy-net0", Plugin: v1alpha1.PluginMacvlan, Subnet: v1alpha1.CIDR(subnet)})
	network.Status.Nodes.Total = int32(known)
	c.AwaitPolicies(b, network)
	dir, nodes := tmpfs(b), make([]*claimingNode, count)
	for i := range nodes {
		nodes[i] = c.claimingNode(b, filepath.Join(dir, fmt.Sprintf("node-%04d", i)), network, dialer)
	}
	defer func() {
		for _, node := range nodes {
			_ = node.manager.Close()
			// The next round needs as many descriptors again.
			utilnet.CloseIdleConnectionsFor(node.transport)
		}
	}()
	each(nodes, 64, func(node *claimingNode) { node.err = node.connect(b.Context()) })
	fleet.Must(b, failures(nodes))
	refused := c.Metric(b, "apiserver_request_total", `code="429"`)
	taken := c.Metric(b, "apiserver_request_total", `code="409"`, `resource="ipblocks"`, `verb="POST"`)
	began := time.Now()
	each(nodes, count, func(node *claimingNode) {
		node.err = node.claim(b.Context())
		node.took = time.Since(began)
	})
	total := time.Since(began)
	fleet.Must(b, failures(nodes))
	c.checkBlocks(b, network.Name, count)
	refused = c.Metric(b, "apiserver_request_total", `code="429"`) - refused
	taken = c.Metric(b, "apiserver_request_total", `code="409"`, `resource="ipblocks"`, `verb="POST"`) - taken
	took, retries := make([]time.Duration, count), 0
	for i, node := range nodes {
		took[i] = node.took
		retries += node.retries
	}
	figures.Say(b, "claims, %s: %d nodes in %.2fs, p50 %s, p99 %s; candidates taken %.0f, refused by flow control (429) %.0f, failed reconciliations %d",
		name, count, total.Seconds(), figures.Percentile(took, 50).Round(time.Millisecond), figures.Percentile(took, 99).Round(time.Millisecond), taken, refused, retries)
	return total
}

// checkBlocks wants as many blocks, each with a node of its own. (Their names
// keep them from overlapping.)
func (c cluster) checkBlocks(b *testing.B, network string, want int) {
	b.Helper()
	var list v1alpha1.IPBlockList
	fleet.Must(b, c.List(b.Context(), &list, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: network}))
	holders := map[string]bool{}
	for i := range list.Items {
		holders[list.Items[i].Spec.NodeName] = true
	}
	if len(list.Items) != want || len(holders) != want {
		b.Fatalf("%d blocks of %d nodes, want %d of as many", len(list.Items), len(holders), want)
	}
}

// claimingNode is a node's Claimer and Manager. What the agent reads from its
// caches comes from here; its writes, and what it reads live, go to the API
// server.
type claimingNode struct {
	client.Client
	name    string
	network *v1alpha1.Network
	manager *ipam.Manager
	claimer *ipam.Claimer
	// transport has the node's connection, or the one that all share.
	transport http.RoundTripper

	took    time.Duration
	retries int
	err     error
}

func (c cluster) claimingNode(b *testing.B, dir string, network *v1alpha1.Network, dialer func() *net.Dialer) *claimingNode {
	b.Helper()
	n := &claimingNode{name: filepath.Base(dir), network: network}
	config := c.AsAgent(n.name)
	if dialer != nil {
		config.Dial = dialer().DialContext // keeps client-go from sharing connections
	}
	connection, err := rest.HTTPClientFor(config)
	fleet.Must(b, err)
	n.transport = connection.Transport
	n.Client, err = client.New(config, client.Options{HTTPClient: connection, Scheme: c.Scheme(), Mapper: c.RESTMapper()})
	fleet.Must(b, err)
	fleet.Must(b, os.Mkdir(dir, 0o755))
	n.manager = ipam.New(ipam.Config{JournalPath: filepath.Join(dir, "addresses.journal")})
	n.claimer = ipam.NewClaimer(ipam.ClaimerConfig{NodeName: n.name}, ipam.ClaimerDeps{Client: n, Live: n.Client, Manager: n.manager})
	fleet.Must(b, n.manager.Replay(func(ipam.Lease) bool { return true }))
	return n
}

// connect does what makes a connection.
func (n *claimingNode) connect(ctx context.Context) error {
	return n.Client.Get(ctx, client.ObjectKey{Name: n.network.Name}, &v1alpha1.Network{})
}

// claim reconciles until the node has a block, with the pauses of the agent's
// queue after an error.
func (n *claimingNode) claim(ctx context.Context) error {
	request := reconcile.Request{NamespacedName: types.NamespacedName{Name: n.network.Name}}
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](50*time.Millisecond, 30*time.Second)
	for {
		result, err := n.claimer.Reconcile(ctx, request)
		if len(n.manager.Usage(n.network.Name).Blocks) > 0 || ctx.Err() != nil {
			return ctx.Err()
		}
		pause := result.RequeueAfter
		if err != nil {
			n.retries++
			pause = limiter.When(request)
		}
		time.Sleep(pause)
	}
}

// Get answers as the agent's cache does.
func (n *claimingNode) Get(_ context.Context, key client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	switch out := obj.(type) {
	case *v1alpha1.Network:
		n.network.DeepCopyInto(out)
	case *corev1.Node:
		out.ObjectMeta = metav1.ObjectMeta{Name: n.name, UID: types.UID("uid-" + n.name)}
	case *v1alpha1.NodeNetwork:
		out.ObjectMeta = metav1.ObjectMeta{Name: n.name}
		out.Status.PhysicalNetworks = []v1alpha1.NodePhysicalNetwork{{Name: n.network.Spec.PhysicalNet, Interfaces: []string{"eth1"}, Ready: true}}
	default:
		return apierrors.NewNotFound(schema.GroupResource{Resource: fmt.Sprintf("%T", obj)}, key.Name)
	}
	return nil
}

// List finds neither pods nor blocks that the node did not create just now.
func (n *claimingNode) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return nil
}

// each runs do for all nodes, so many at a time.
func each(nodes []*claimingNode, parallel int, do func(*claimingNode)) {
	slots := make(chan struct{}, parallel)
	var group sync.WaitGroup
	for _, node := range nodes {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			do(node)
		})
	}
	group.Wait()
}

func failures(nodes []*claimingNode) error {
	var out []error
	for _, node := range nodes {
		out = append(out, node.err)
	}
	return errors.Join(out...)
}
