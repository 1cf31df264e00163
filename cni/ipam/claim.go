// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	// maxCollisions is how many candidates may be taken before the Network's
	// blocks are listed once.
	maxCollisions = 4
	// callTimeout bounds one call to the API server: a reply that is lost must
	// be found out. It is longer than flow control has a request wait, as a call
	// that is given up costs two more.
	callTimeout = 30 * time.Second
	// expectFor is how long a created block counts without having come
	// through the watch.
	expectFor = time.Minute
	// Pauses after no candidate was left.
	minPause = time.Second
	maxPause = time.Minute
	// conflictPause is between two attempts to assert a block that another has:
	// it may have been removed by force.
	conflictPause = 5 * time.Second
	// claimSpread times the number of nodes is the time over which they spread
	// claims that no pod waits for. An API server creates some hundred blocks per
	// second; what comes faster it refuses (429), and refusing costs it as well.
	claimSpread = 4 * time.Millisecond
	// listPage is how many block names one call returns.
	listPage = 500
)

// Hints end up in the errors of pods, after the network's name.
const (
	hintExhausted = "every block of the network's subnets is claimed by a node: add addresses with spec.additionalSubnets, or wait for pods to end"
	hintTight     = "the Network is Tight, so that its blocks are claimed on demand: the one for this pod is on its way"
	hintGone      = "the Network does not exist, or is being deleted"
	hintNotReady  = "the Network is not Ready: see its conditions"
	hintRollback  = "the API server's state went back to an earlier one (a restored backup?), so that new blocks wait until every node has asserted its own"
	hintComparing = "the agent has just started and compares what it has read with the API server, so that new addresses wait"
	// of a fixed address
	hintFixedRollback = "the API server's state went back to an earlier one (a restored backup?), so that fixed addresses wait until every node has told which are in use"
	hintNotBacked     = "no NIC of this node that is up backs the network's physical network, or the node refuses the network: see the node's NodeNetwork"
)

// claims is what the Claimer remembers of one Network. All but expected is
// touched by the Network's own reconciliation only.
type claims struct {
	uid  types.UID
	spec v1alpha1.NetworkSpec
	plan *addressing.Plan

	expected map[string]expectation // created or found, not in the cache yet
	doubtful map[string]bool        // Create gave no answer
	pause    pause
	first    time.Time                  // when it is this node's turn for its first block
	short    time.Time                  // since when pods that are bound here lack addresses
	lacking  time.Time                  // since when one more block has been needed
	poked    time.Time                  // since when a pod has waited that no reconciliation has seen; Claimer.mu guards it
	lost     map[netip.Prefix]lostBlock // leases live in blocks that other nodes have
	told     map[string]string          // the conflicts that were told of: block's name -> other node
	rewound  rewound
}

type expectation struct {
	block *v1alpha1.IPBlock
	since time.Time
}

// pause is the time without claims after no candidate was left.
type pause struct {
	until      time.Time
	length     time.Duration
	claimed    int64 // by the Network's status, then
	generation int64
	blocks     int
}

func (c *Claimer) claimsOf(network string) *claims {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.networks[network]
	if st == nil {
		st = &claims{expected: map[string]expectation{}, doubtful: map[string]bool{}, lost: map[netip.Prefix]lostBlock{}, rewound: rewound{trusted: map[netip.Prefix]bool{}, gone: map[types.UID]bool{}}}
		c.networks[network] = st
	}
	return st
}

func (c *Claimer) forgetClaims(network string) {
	c.metrics.forget(network)
	c.manager.garbage.forget(network)
	c.manager.foreign.forget(network)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.networks, network)
}

// planOf returns the same plan as long as the spec is the same, and the former
// one if the spec cannot be carved: its addresses are in use. It compares the
// spec itself, as in an API server restored from a backup the same generation
// can come again with another one.
func (st *claims) planOf(network *v1alpha1.Network) *addressing.Plan {
	if st.uid == network.UID && equality.Semantic.DeepEqual(&st.spec, &network.Spec) {
		return st.plan
	}
	plan, err := addressing.NewPlan(network.Name, &network.Spec)
	if err == nil || st.uid != network.UID {
		st.plan = plan
	}
	st.uid, st.spec = network.UID, *network.Spec.DeepCopy()
	return st.plan
}

// eachExpected calls add for every block that the cache lacks still.
func (st *claims) eachExpected(now time.Time, add func(*v1alpha1.IPBlock) error) []error {
	var errs []error
	for name, e := range st.expected {
		if now.Sub(e.since) > expectFor {
			delete(st.expected, name)
			continue
		}
		errs = append(errs, add(e.block))
	}
	return errs
}

// seen notes that a block has come through the watch.
func (c *Claimer) seen(block *v1alpha1.IPBlock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if st := c.networks[block.Spec.Network]; st != nil {
		delete(st.expected, block.Name)
	}
}

func (c *Claimer) expect(st *claims, block *v1alpha1.IPBlock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st.expected[block.Name] = expectation{block, c.clock.Now()}
}

// Reconcile brings the node's blocks of one Network to what is needed. It
// claims block after block as long as more are needed.
//
// +kubebuilder:rbac:groups=netplane.io,resources=networks,verbs=get;list;watch
// +kubebuilder:rbac:groups=netplane.io,resources=nodenetworks,verbs=get;list;watch
// +kubebuilder:rbac:groups=netplane.io,resources=ipblocks,verbs=get;list;watch;create;delete;patch
// +kubebuilder:rbac:groups="",resources=nodes;pods,verbs=get;list;watch
func (c *Claimer) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	select {
	case <-c.manager.Ready():
	case <-ctx.Done():
		return reconcile.Result{RequeueAfter: time.Second}, nil
	}
	c.askCaches()
	c.awaitComparison(ctx)
	st := c.claimsOf(req.Name)
	v, err := c.look(ctx, req.Name, st)
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := c.adopt(ctx, v); err != nil {
		return reconcile.Result{}, err
	}
	if err := c.verify(ctx, v, st); err != nil {
		return reconcile.Result{}, err
	}
	if err := c.amendTunnels(ctx, v); err != nil {
		return reconcile.Result{}, err
	}
	v.tell(c.manager)
	if v.ending() {
		c.manager.endAsidesOf(ctx, v.name)
	}
	usage := c.manager.Usage(v.name)
	if v.network == nil && len(usage.Leases)+len(usage.Blocks) == 0 {
		c.forgetClaims(v.name)
		return reconcile.Result{}, nil
	}
	again, err := c.assert(ctx, v, st, &usage)
	if err != nil {
		return reconcile.Result{}, err
	}
	c.noteConflicts(ctx, v, st)
	d, err := c.claimAll(ctx, v, st)
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := c.letGo(ctx, v, &d); err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: sooner(sooner(again, v.reopens), d.again)}, nil
}

// sooner is the smaller of two waits, of which 0 means none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// claimAll claims until nothing more is needed, or to be had.
func (c *Claimer) claimAll(ctx context.Context, v *view, st *claims) (decision, error) {
	began := c.takePoke(st)
	for {
		usage := c.manager.Usage(v.name)
		now := c.clock.Now()
		s := v.situation(&usage, c.graces, now)
		st.short = s.noteShortage(st.short)
		d := decide(s)
		switch {
		case !d.lacks:
			st.lacking = time.Time{}
		case st.lacking.IsZero():
			st.lacking = began
		}
		if !d.claim {
			c.manager.Hint(v.name, v.awaited())
			return d, nil
		}
		if rest, hint := c.hesitation(now); rest > 0 {
			c.manager.Hint(v.name, hint)
			d.wait(rest)
			return d, nil
		}
		if rest := st.pause.rest(v, now); rest > 0 {
			c.manager.Hint(v.name, hintExhausted)
			d.wait(rest)
			return d, nil
		}
		if rest := st.turn(v, s); rest > 0 {
			d.wait(rest)
			return d, nil
		}
		block, err := c.claim(ctx, v, st)
		if err != nil {
			return d, err
		}
		if block == nil {
			st.pause.extend(v, now)
			c.metrics.claim(v.name, claimExhausted)
			log.FromContext(ctx).V(2).Info("No block of the network is left to claim", "network", v.name, "pause", st.pause.length)
			continue
		}
		st.pause = pause{}
		c.metrics.took(v.name, c.clock.Since(st.lacking))
		st.lacking, began = time.Time{}, c.clock.Now()
		log.FromContext(ctx).Info("Claimed a block", "network", v.name, "block", block.Spec.CIDR)
		if err := v.add(block); err != nil {
			return d, err
		}
		c.suspend(v, st) // the reply may have told of a rollback
		v.tell(c.manager)
	}
}

// takePoke is when what this reconciliation looks at may have come up: when a pod
// began to wait, or now.
func (c *Claimer) takePoke(st *claims) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := st.poked
	st.poked = time.Time{}
	if at.IsZero() {
		at = c.clock.Now()
	}
	return at
}

// turn is how long the node leaves the first block of a Network, which no pod
// waits for, to others: all nodes want one when the Network becomes Ready.
func (st *claims) turn(v *view, s *situation) time.Duration {
	if s.needed > 0 || len(v.blocks) > 0 {
		st.first = time.Time{}
		return 0
	}
	if st.first.IsZero() {
		st.first = s.now.Add(rand.N(1 + time.Duration(v.network.Status.Nodes.Total)*claimSpread))
	}
	return st.first.Sub(s.now)
}

// rest is what is left of the pause. Signs that a block became free end it: the
// counted claims went down, the spec changed, or a block of this node went.
func (p *pause) rest(v *view, now time.Time) time.Duration {
	if v.network.Status.Addresses.Claimed < p.claimed || v.network.Generation != p.generation || len(v.blocks) < p.blocks {
		return 0
	}
	return p.until.Sub(now)
}

// extend doubles the pause; nodes drift apart by a fifth of it.
func (p *pause) extend(v *view, now time.Time) {
	p.length = min(maxPause, max(minPause, 2*p.length))
	p.until = now.Add(p.length + rand.N(p.length/5))
	p.claimed, p.generation, p.blocks = v.network.Status.Addresses.Claimed, v.network.Generation, len(v.blocks)
}

// claim creates one block, or returns nil if no candidate is left. After an
// error the next attempt begins with the same candidates, and finds what was
// created without an answer.
func (c *Claimer) claim(ctx context.Context, v *view, st *claims) (*v1alpha1.IPBlock, error) {
	taken := map[string]bool{}
	collisions := 0
	if st.pause.length > 0 {
		collisions = maxCollisions // there was nothing left a while ago: look before trying
		if err := c.listTaken(ctx, v.name, taken); err != nil {
			return nil, err
		}
	}
	for prefix := range v.plan.Candidates(c.node) {
		name := addressing.BlockName(v.name, prefix)
		if v.blocks[prefix] != nil || v.others[prefix] != nil || v.plan.Capacity(prefix) == 0 {
			continue
		}
		if taken[name] && !st.doubtful[name] {
			continue
		}
		block, err := c.create(ctx, v, st, prefix)
		if err != nil || block != nil {
			return block, err
		}
		if collisions++; collisions == maxCollisions {
			if err := c.listTaken(ctx, v.name, taken); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// create creates the block. It returns nil if another has it.
func (c *Claimer) create(ctx context.Context, v *view, st *claims, prefix netip.Prefix) (*v1alpha1.IPBlock, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	block := v.newBlock(c.node, prefix)
	floor := c.history.floor()
	err := c.client.Create(ctx, block)
	switch {
	case err == nil:
		c.history.wrote(block.ResourceVersion, floor)
		delete(st.doubtful, block.Name)
		c.metrics.claim(v.name, claimCreated)
		c.expect(st, block)
		return block, nil
	case apierrors.IsAlreadyExists(err) && st.doubtful[block.Name]:
		return c.recognise(ctx, v, st, block.Name)
	case apierrors.IsAlreadyExists(err):
		c.metrics.claim(v.name, claimTaken)
		return nil, nil
	}
	st.doubtful[block.Name] = true
	c.metrics.claim(v.name, claimFailed)
	return nil, fmt.Errorf("claiming block %s of network %q: %w", prefix, v.name, err)
}

// recognise finds out whose a block is that an earlier Create may have made.
func (c *Claimer) recognise(ctx context.Context, v *view, st *claims, name string) (*v1alpha1.IPBlock, error) {
	var block v1alpha1.IPBlock
	if err := c.live.Get(ctx, client.ObjectKey{Name: name}, &block); err != nil {
		return nil, fmt.Errorf("reading IPBlock %q, which may be this node's: %w", name, err)
	}
	delete(st.doubtful, name)
	if block.Spec.NodeName != c.node || block.Spec.NodeUID != v.nodeUID || v.orphan(&block) {
		c.metrics.claim(v.name, claimTaken)
		return nil, nil
	}
	c.metrics.claim(v.name, claimAdopted)
	c.expect(st, &block)
	return &block, nil
}

func (v *view) newBlock(node string, prefix netip.Prefix) *v1alpha1.IPBlock {
	block := &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{
			Name:       addressing.BlockName(v.name, prefix),
			Finalizers: []string{v1alpha1.FinalizerIPBlock},
		},
		Spec: v1alpha1.IPBlockSpec{
			Network:    v.name,
			NetworkUID: v.network.UID,
			CIDR:       v1alpha1.CIDR(prefix.String()),
			NodeName:   node,
			NodeUID:    v.nodeUID,
		},
	}
	if v.vtep.IsValid() {
		block.Spec.VTEP = v1alpha1.IP(v.vtep.String())
	}
	return block
}

// listTaken adds the names of all blocks of the Network, from the API server:
// the cache has this node's only.
func (c *Claimer) listTaken(ctx context.Context, network string, taken map[string]bool) error {
	if err := c.listNames(ctx, taken, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: network}); err != nil {
		return fmt.Errorf("listing the blocks of network %q: %w", network, err)
	}
	return nil
}

// letGo deletes the blocks that are given back, and lets those go that are
// empty and deleted.
func (c *Claimer) letGo(ctx context.Context, v *view, d *decision) error {
	for _, prefix := range d.giveBack {
		if err := c.giveBack(ctx, v, prefix); err != nil {
			return err
		}
	}
	for _, prefix := range d.finish {
		if !c.manager.Seal(v.name, prefix) {
			continue // a pod was faster
		}
		if err := c.finish(ctx, v.blocks[prefix]); err != nil {
			return err
		}
	}
	return nil
}

func (c *Claimer) giveBack(ctx context.Context, v *view, prefix netip.Prefix) error {
	block := v.blocks[prefix]
	if v.opens(prefix) && !c.manager.Drain(v.name, prefix) {
		return nil // a pod was faster
	}
	err := c.client.Delete(ctx, block, client.Preconditions{UID: &block.UID})
	if client.IgnoreNotFound(err) != nil {
		c.manager.Undrain(v.name, prefix)
		return fmt.Errorf("giving back block %s of network %q: %w", prefix, v.name, err)
	}
	log.FromContext(ctx).Info("Gave a block back", "network", v.name, "block", prefix)
	return nil
}

// finish takes the finalizer off. The Manager has sealed the block, so that no
// address of it can come into use any more.
func (c *Claimer) finish(ctx context.Context, block *v1alpha1.IPBlock) error {
	bare := block.DeepCopy()
	if !controllerutil.RemoveFinalizer(bare, v1alpha1.FinalizerIPBlock) {
		return nil
	}
	c.mu.Lock()
	c.finished[block.UID] = true
	c.mu.Unlock()
	err := c.client.Patch(ctx, bare, client.MergeFromWithOptions(block, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("letting go of IPBlock %q: %w", block.Name, err)
	}
	c.metrics.released.Inc()
	log.FromContext(ctx).Info("Let a block go", "network", block.Spec.Network, "block", block.Spec.CIDR)
	return nil
}
