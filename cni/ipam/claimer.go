// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Defaults of ClaimerConfig.
const (
	DefaultIdleGrace   = 5 * time.Minute
	DefaultScarceGrace = 30 * time.Second
	DefaultUnusedGrace = time.Minute
	DefaultDrainGrace  = 10 * time.Second
	// DefaultRollbackPause is time enough for all agents to list their blocks,
	// and for the conflicts that they find to reach the nodes concerned.
	DefaultRollbackPause = time.Minute
	// DefaultProbeEvery leaves most of the pause to what follows: a start of the
	// agent, and the assertions.
	DefaultProbeEvery = 20 * time.Second
)

// settle gathers lease changes before the Claimer looks at them. A pod that
// waits for an address is never held up by it.
const settle = 100 * time.Millisecond

// reconcileTimeout frees a worker whose calls to the API server hang.
const reconcileTimeout = time.Minute

// ClaimerConfig says how a Claimer works; zero durations mean the defaults.
type ClaimerConfig struct {
	// NodeName is this node.
	NodeName string
	// IdleGrace passes before a block that nobody needs is given back.
	IdleGrace time.Duration
	// ScarceGrace is IdleGrace for Networks that are Tight or without an
	// unclaimed block.
	ScarceGrace time.Duration
	// UnusedGrace is ScarceGrace, if that is not longer, for the blocks of a Tight
	// Network in which no address was in use yet. The scheduler has created such
	// a block for a pod that it is about to bind. Where it places a thousand at once
	// that takes a while: it counts on the block for a minute.
	UnusedGrace time.Duration
	// DrainGrace passes before an empty block that is being deleted goes.
	DrainGrace time.Duration
	// RollbackPause passes without new claims after the API server's state went
	// back to an earlier one.
	RollbackPause time.Duration
	// ProbeEvery is how often the API server is asked how far its state is.
	ProbeEvery time.Duration
	// VersionFile keeps, over a restart, how far the API server's state had
	// come; in tmpfs. Empty means that a restarted agent does not know.
	VersionFile string
}

// ClaimerDeps are what a Claimer works with.
type ClaimerDeps struct {
	// Client reads from a cache that holds all Networks and this node's Node,
	// NodeNetwork, IPBlocks and Pods.
	Client client.Client
	// Live reads from the API server itself.
	Live client.Reader
	// Manager is told of the blocks.
	Manager *Manager
	// Tunnel returns the node's tunnel address in a Network of plugin vxlan; an
	// invalid one if it is not known. It may be nil.
	Tunnel func(network string) netip.Addr
	// Metrics may be nil.
	Metrics *Metrics
	// Events may be nil.
	Events EventRecorder
	// Logger is for what no reconciliation is the cause of; klog's if it is zero.
	Logger klog.Logger
	// Clock is the real one if nil.
	Clock clock.PassiveClock
}

// EventRecorder is what the Claimer needs of an events.EventRecorder.
type EventRecorder interface {
	Eventf(regarding, related runtime.Object, eventtype, reason, action, note string, args ...any)
}

// Claimer keeps the node in addresses: it claims IPBlocks of the Networks that
// the node's NICs back, adopts those that others made for the node, and lets
// go of what is not needed. It reconciles one Network at a time.
type Claimer struct {
	node    string
	graces  graces
	client  client.Client
	live    client.Reader
	manager *Manager
	tunnel  func(network string) netip.Addr
	metrics *Metrics
	events  EventRecorder
	clock   clock.PassiveClock
	history *history

	probeEvery time.Duration
	caches     []cacheVersion
	compared   chan struct{} // closed when all caches were compared with the API server
	comparing  time.Duration // how long a reconciliation waits for that

	queue   atomic.Pointer[workqueue.TypedRateLimitingInterface[reconcile.Request]]
	demands demands

	mu        sync.Mutex
	nodeUID   types.UID
	networks  map[string]*claims
	finished  map[types.UID]bool // blocks that were let go and are still in the cache
	lastAsked string             // the own block that was compared with the API server last
}

// NewClaimer makes a Claimer; call it before Manager.Replay.
func NewClaimer(cfg ClaimerConfig, deps ClaimerDeps) *Claimer {
	c := &Claimer{
		node: cfg.NodeName,
		graces: graces{
			idle:   orDefault(cfg.IdleGrace, DefaultIdleGrace),
			scarce: orDefault(cfg.ScarceGrace, DefaultScarceGrace),
			unused: orDefault(cfg.UnusedGrace, DefaultUnusedGrace),
			drain:  orDefault(cfg.DrainGrace, DefaultDrainGrace),
		},
		client:   deps.Client,
		live:     deps.Live,
		manager:  deps.Manager,
		tunnel:   deps.Tunnel,
		metrics:  deps.Metrics,
		events:   deps.Events,
		clock:    deps.Clock,
		networks: map[string]*claims{},
		finished: map[types.UID]bool{},

		probeEvery: orDefault(cfg.ProbeEvery, DefaultProbeEvery),
		compared:   make(chan struct{}),
		comparing:  lookBackEvery,
	}
	if c.metrics == nil {
		c.metrics = newMetrics()
	}
	if c.clock == nil {
		c.clock = clock.RealClock{}
	}
	if deps.Logger.IsZero() {
		deps.Logger = klog.Background().WithName("ipam")
	}
	c.history = &history{
		clock: c.clock, pause: orDefault(cfg.RollbackPause, DefaultRollbackPause), path: cfg.VersionFile,
		logger: deps.Logger, metrics: c.metrics, alarm: c.pokeAll, seen: map[stream]string{},
	}
	c.history.remember()
	c.manager.Subscribe(c.poke)
	c.manager.setHesitation(c.fixedWait)
	return c
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// SetupWithManager registers the Claimer's controller.
func (c *Claimer) SetupWithManager(mgr ctrl.Manager) error {
	everything := handler.EnqueueRequestsFromMapFunc(c.allNetworks)
	err := ctrl.NewControllerManagedBy(mgr).
		Named("ipam-claimer").
		For(&v1alpha1.Network{}).
		Watches(&v1alpha1.IPBlock{}, handler.EnqueueRequestsFromMapFunc(c.networkOfBlock)).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(c.networksOfPod), builder.WithPredicates(demandChanged())).
		Watches(&v1alpha1.NodeNetwork{}, everything, builder.WithPredicates(offerChanged())).
		Watches(&corev1.Node{}, everything, builder.WithPredicates(identityChanged())).
		WatchesRawSource(source.Func(c.takeQueue)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 4,
			ReconciliationTimeout:   reconcileTimeout,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](50*time.Millisecond, 30*time.Second),
		}).
		Complete(c)
	if err != nil {
		return fmt.Errorf("setting up the claimer of address blocks: %w", err)
	}
	return c.followHistory(mgr)
}

func (c *Claimer) takeQueue(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	c.queue.Store(&queue)
	return nil
}

// poke is called by the Manager. Before the controller runs there is nobody to
// poke, and its start looks at every Network anyway.
func (c *Claimer) poke(network string, waiting bool) {
	queue := c.queue.Load()
	if waiting {
		c.notePoke(network)
	}
	switch {
	case queue == nil:
	case waiting:
		(*queue).Add(requestFor(network))
	default:
		(*queue).AddAfter(requestFor(network), settle)
	}
}

// notePoke keeps since when the first pod of a Network waits for the queue.
func (c *Claimer) notePoke(network string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if st := c.networks[network]; st != nil && st.poked.IsZero() {
		st.poked = c.clock.Now()
	}
}

// pokeAll has every Network looked at that the node has anything of.
func (c *Claimer) pokeAll() {
	c.mu.Lock()
	names := slices.Collect(maps.Keys(c.networks))
	c.mu.Unlock()
	for _, network := range names {
		c.poke(network, true)
	}
}

func requestFor(network string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Name: network}}
}

func (c *Claimer) allNetworks(ctx context.Context, _ client.Object) []reconcile.Request {
	var list v1alpha1.NetworkList
	if err := c.client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		log.FromContext(ctx).Error(err, "Listing the Networks failed: their blocks wait for the next event")
		return nil
	}
	out := make([]reconcile.Request, 0, len(list.Items))
	for i := range list.Items {
		out = append(out, requestFor(list.Items[i].Name))
	}
	return out
}

func (c *Claimer) networkOfBlock(_ context.Context, obj client.Object) []reconcile.Request {
	block, ok := obj.(*v1alpha1.IPBlock)
	if !ok || block.Spec.NodeName != c.node {
		return nil
	}
	c.seen(block)
	return []reconcile.Request{requestFor(block.Spec.Network)}
}

func (c *Claimer) networksOfPod(_ context.Context, obj client.Object) []reconcile.Request {
	var out []reconcile.Request
	for network := range c.demands.of(obj.GetAnnotations()) {
		out = append(out, requestFor(network))
	}
	return out
}

// demandChanged passes the pod events that change what the node's pods need.
func demandChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok1 := e.ObjectOld.(*corev1.Pod)
		after, ok2 := e.ObjectNew.(*corev1.Pod)
		return !ok1 || !ok2 || terminal(before) != terminal(after) ||
			before.Annotations[v1alpha1.AnnotationNetworks] != after.Annotations[v1alpha1.AnnotationNetworks] ||
			before.Spec.NodeName != after.Spec.NodeName
	}}
}

// offerChanged passes the NodeNetwork events that change what may be claimed.
func offerChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok1 := e.ObjectOld.(*v1alpha1.NodeNetwork)
		after, ok2 := e.ObjectNew.(*v1alpha1.NodeNetwork)
		return !ok1 || !ok2 ||
			!equality.Semantic.DeepEqual(before.Status.PhysicalNetworks, after.Status.PhysicalNetworks) ||
			!equality.Semantic.DeepEqual(before.Status.Refused, after.Status.Refused)
	}}
}

// identityChanged passes the events of a Node that comes, goes, or is another.
func identityChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetUID() != e.ObjectNew.GetUID()
	}}
}
