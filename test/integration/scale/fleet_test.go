// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
)

// settle is how long an agent gathers changes of its leases.
const settle = 100 * time.Millisecond

// podNode is the field by which pods are listed, as a kubelet does.
const podNode = "spec.nodeName"

// fleet is what runs on the nodes: of each its agent's real address management,
// and a kubelet that does no more than ask it for the addresses of the pods that
// are bound. All nodes share one client and one set of caches, in which each
// finds only its own, and a few workers.
//
// A node gets its agent when the first block or pod names it. The Network is
// Tight from the beginning, so that before that an agent would have nothing to do.
type fleet struct {
	t      testing.TB
	client client.Client
	live   client.Reader
	dir    string
	clock  aheadClock

	mu      sync.Mutex
	queue   workqueue.TypedRateLimitingInterface[reconcile.Request]
	agents  map[string]*agent               // by node
	running map[types.NamespacedName]string // containers, by pod
	refused []string                        // pods that were bound and got no address
}

// aheadClock is the real one, put forward.
type aheadClock struct {
	clock.RealClock
	by atomic.Int64
}

// Now is ahead of the time.
func (c *aheadClock) Now() time.Time { return c.RealClock.Now().Add(time.Duration(c.by.Load())) }

// Since agrees with Now.
func (c *aheadClock) Since(then time.Time) time.Duration { return c.Now().Sub(then) }

// agent is one node's.
type agent struct {
	*ipam.Manager
	claimer *ipam.Claimer
}

// ownNode is a cache as a node's agent has it: with what concerns its node.
type ownNode struct {
	client.Client
	node string
}

// List lists blocks and pods of the node only.
func (o ownNode) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	switch list.(type) {
	case *corev1.PodList:
		options = append(options, client.MatchingFields{podNode: o.node})
	case *v1alpha1.IPBlockList:
		options = append(options, client.MatchingFields{v1alpha1.FieldIPBlockNodeName: o.node})
	}
	return o.Client.List(ctx, list, options...)
}

// newFleet registers the nodes' controllers with a manager, which has not started.
func newFleet(t testing.TB, mgr ctrl.Manager) *fleet {
	t.Helper()
	f := &fleet{
		t: t, client: mgr.GetClient(), live: mgr.GetAPIReader(), dir: t.TempDir(),
		agents: map[string]*agent{}, running: map[types.NamespacedName]string{},
	}
	t.Cleanup(f.close)
	must(t,
		mgr.GetFieldIndexer().IndexField(t.Context(), &corev1.Pod{}, podNode, func(o client.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }),
		mgr.GetFieldIndexer().IndexField(t.Context(), &v1alpha1.IPBlock{}, v1alpha1.FieldIPBlockNodeName, func(o client.Object) []string { return []string{o.(*v1alpha1.IPBlock).Spec.NodeName} }),
		ctrl.NewControllerManagedBy(mgr).
			Named("agents").
			Watches(&v1alpha1.Network{}, handler.EnqueueRequestsFromMapFunc(f.onAllNodes)).
			Watches(&v1alpha1.IPBlock{}, handler.EnqueueRequestsFromMapFunc(f.ofBlock)).
			Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(f.ofPod)).
			WatchesRawSource(source.Func(f.takeQueue)).
			WithOptions(controller.Options{MaxConcurrentReconciles: 8}).
			Complete(reconcile.Func(f.manage)),
		ctrl.NewControllerManagedBy(mgr).
			Named("kubelets").
			For(&corev1.Pod{}).
			WithOptions(controller.Options{MaxConcurrentReconciles: 16}).
			Complete(reconcile.Func(f.run)),
	)
	return f
}

func (f *fleet) takeQueue(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = queue
	return nil
}

// requestFor asks a node to look at a Network.
func requestFor(node, network string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: node, Name: network}}
}

func (f *fleet) ofBlock(_ context.Context, object client.Object) []reconcile.Request {
	block := object.(*v1alpha1.IPBlock)
	return []reconcile.Request{requestFor(block.Spec.NodeName, block.Spec.Network)}
}

func (f *fleet) ofPod(_ context.Context, object client.Object) []reconcile.Request {
	pod := object.(*corev1.Pod)
	if pod.Spec.NodeName == "" {
		return nil
	}
	return []reconcile.Request{requestFor(pod.Spec.NodeName, networkName)}
}

func (f *fleet) onAllNodes(_ context.Context, network client.Object) []reconcile.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]reconcile.Request, 0, len(f.agents))
	for node := range f.agents {
		out = append(out, requestFor(node, network.GetName()))
	}
	return out
}

// manage has a node's agent look at a Network.
func (f *fleet) manage(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	agent, err := f.agent(request.Namespace)
	if err != nil {
		return reconcile.Result{}, err
	}
	return agent.claimer.Reconcile(ctx, reconcile.Request{NamespacedName: types.NamespacedName{Name: request.Name}})
}

// agent returns the agent of a node.
func (f *fleet) agent(node string) (*agent, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if there := f.agents[node]; there != nil {
		return there, nil
	}
	manager := ipam.New(ipam.Config{JournalPath: filepath.Join(f.dir, node+".journal"), Wait: patience, Clock: &f.clock})
	made := &agent{Manager: manager, claimer: ipam.NewClaimer(
		ipam.ClaimerConfig{NodeName: node},
		ipam.ClaimerDeps{Client: ownNode{f.client, node}, Live: f.live, Manager: manager, Clock: &f.clock})}
	queue := f.queue
	manager.Subscribe(func(network string, waiting bool) {
		if waiting {
			queue.Add(requestFor(node, network))
		} else {
			queue.AddAfter(requestFor(node, network), settle)
		}
	})
	if err := manager.Replay(func(ipam.Lease) bool { return true }); err != nil {
		return nil, fmt.Errorf("starting the agent of node %s: %w", node, err)
	}
	f.agents[node] = made
	return made, nil
}

// run is a kubelet's part in a pod's life: once it is bound it gets all of its
// addresses in one CNI ADD. The CNI DEL is in end.
func (f *fleet) run(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var pod corev1.Pod
	if err := f.client.Get(ctx, request.NamespacedName, &pod); err != nil || pod.Spec.NodeName == "" || f.isRunning(&pod) {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	agent, err := f.agent(pod.Spec.NodeName)
	if err != nil {
		return reconcile.Result{}, err
	}
	requests, err := podnetworks.Parse(pod.Annotations[v1alpha1.AnnotationNetworks])
	if err != nil {
		return reconcile.Result{}, err
	}
	asks := make([]ipam.Ask, 0, len(requests))
	for i := range requests {
		asks = append(asks, ipam.Ask{Network: requests[i].Name, Owner: ipam.Owner{
			PodUID: string(pod.UID), PodNamespace: pod.Namespace, PodName: pod.Name, ContainerID: containerOf(&pod), IfName: fmt.Sprint("net", i+1),
		}})
	}
	_, err = agent.Reserve(ctx, asks)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		f.refused = append(f.refused, fmt.Sprintf("pod %s was bound to node %s but gets no address: %v", pod.Name, pod.Spec.NodeName, err))
	}
	f.running[request.NamespacedName] = containerOf(&pod)
	return reconcile.Result{}, nil
}

func containerOf(pod *corev1.Pod) string { return "sandbox-of-" + string(pod.UID) }

func (f *fleet) isRunning(pod *corev1.Pod) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running[client.ObjectKeyFromObject(pod)] == containerOf(pod)
}

// end deletes a pod that runs, as its kubelet would after the CNI DEL.
func (f *fleet) end(ctx context.Context, pod *corev1.Pod) error {
	agent, err := f.agent(pod.Spec.NodeName)
	if err != nil {
		return err
	}
	if err := agent.Release(ctx, containerOf(pod)); err != nil {
		return fmt.Errorf("releasing the addresses of pod %s: %w", pod.Name, err)
	}
	return f.client.Delete(ctx, pod, client.GracePeriodSeconds(0))
}

// elapse puts the agents' clock forward, and has each of them look at it: the
// graces are as shipped, but nobody waits for them.
func (f *fleet) elapse(grace time.Duration) {
	f.clock.by.Add(int64(grace))
	f.mu.Lock()
	defer f.mu.Unlock()
	for node := range f.agents {
		f.queue.Add(requestFor(node, networkName))
	}
}

// closed counts the blocks that agents know to be given back.
func (f *fleet) closed() (count int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, agent := range f.agents {
		for _, block := range agent.Usage(networkName).Blocks {
			if block.Closed {
				count++
			}
		}
	}
	return count
}

// refusals tell of pods that were bound in vain.
func (f *fleet) refusals() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refused
}

// leases counts the addresses that are in use by the container that uses them,
// and names those that are in use twice.
func (f *fleet) leases() (count map[string]int, twice []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	count, users := map[string]int{}, map[string]string{}
	for node, agent := range f.agents {
		for _, lease := range agent.Leases() {
			count[lease.ContainerID]++
			if other, used := users[lease.Address.String()]; used {
				twice = append(twice, fmt.Sprintf("%s on nodes %s and %s", lease.Address, node, other))
			}
			users[lease.Address.String()] = node
		}
	}
	return count, twice
}

// close ends the agents. The manager has ended.
func (f *fleet) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for node, agent := range f.agents {
		if err := agent.Close(); err != nil {
			f.t.Errorf("closing the agent of %s: %v", node, err)
		}
	}
}
