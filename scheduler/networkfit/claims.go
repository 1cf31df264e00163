// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	// assumeFor is how long a block that was created, and a pod that was bound,
	// count without the informers showing them.
	assumeFor = time.Minute
	// avoidFor is how long such a block is not chosen again: pods that are not
	// bound yet may count on it, and it must not be counted twice.
	avoidFor = 10 * assumeFor
	// takenFor is the same for a block that another has. It is short, because no
	// event tells when it has passed: to try such a block again costs one request.
	takenFor = 5 * time.Second
)

// claims are the blocks of Tight networks that the scheduler is about to
// create, and has created but not seen yet. It is the only thing that the
// plugin accounts for itself: a block that is on its way is in no informer,
// and two pods must not count on the same one for two nodes.
//
// All profiles of a process share it. The zero value is ready to use.
type claims struct {
	clock clock.PassiveClock // the real one if nil

	// awaited are the claims by the name of their block, for shows.
	awaited sync.Map // string -> *claim

	mu    sync.Mutex
	pools map[types.UID]*pool // by Network
}

// pool is what is on its way of one Network. The claims' lock guards it.
type pool struct {
	awaited *sync.Map // the claims'
	byBlock map[netip.Prefix]*claim
	byNode  map[string][]*claim // in the order in which they were reserved
	// placed are the pods that were reserved a place on a node since the
	// snapshot of the nodes was taken, or may have been: the members of a pod
	// group are placed for good one after the other with one old snapshot.
	placed map[string]map[types.UID]*placement
	taken  map[netip.Prefix]taken // by others, found out by a collision
	swept  time.Time
}

// taken is the name of a block that another has, and when that was found out.
type taken struct {
	name  string
	since time.Time
}

// placement is one pod's demand, and when it was bound, if it was.
type placement struct {
	demand int
	bound  time.Time
}

// claim is one block that is on its way to a node.
type claim struct {
	node    *v1.Node
	network *network
	// turn is held by the one that creates the block; it has one place.
	turn chan struct{}
	// seen is set when the informer shows a block of this name. It may be given
	// back, and gone from there, before anybody looks.
	seen atomic.Bool

	// The claims' lock guards the rest.
	prefix  netip.Prefix
	name    string             // of the IPBlock
	holders map[types.UID]bool // pods that cannot do without
	created time.Time          // zero before
}

func newClaim(n *need, prefix netip.Prefix) *claim {
	return &claim{
		node: n.node, network: n.network, turn: make(chan struct{}, 1), holders: map[types.UID]bool{n.pod: true},
		prefix: prefix, name: addressing.BlockName(n.network.Name, prefix),
	}
}

// counts tells whether pods may count on the block. What the informer shows is
// counted there, if it is the node's; if it is not, the claim is given another.
func (on *claim) counts(now time.Time, shown func(name string) bool) bool {
	return !on.seen.Load() && !shown(on.name) && (on.created.IsZero() || now.Sub(on.created) <= assumeFor)
}

// need is a pod that is given a place on a node.
type need struct {
	network *network
	node    *v1.Node
	pod     types.UID
	demand  int
	// lack is by how many addresses the demand exceeds what is free on the node,
	// as far as informers and snapshot show. Negative means that some stay free.
	lack int
	// counted tells whether lack takes a pod into account already, or the pod has
	// ended.
	counted func(types.UID) bool
	// shown tells whether the informer shows a block.
	shown func(name string) bool
	// unclaimed are the blocks that the informer does not show, best first.
	unclaimed iter.Seq[netip.Prefix]
}

// shows notes that the informer shows a block. The informer's store calls it
// with its own lock held, so it must not take that of the claims.
func (c *claims) shows(name string) {
	if on, ok := c.awaited.Load(name); ok {
		on.(*claim).seen.Store(true)
	}
}

// reserve gives the pod a share of the blocks that are on their way to the
// node, and puts as many more on their way as are needed. It is false, and
// nothing has changed, if none are left.
func (c *claims) reserve(n *need) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pool(n.network.UID)
	p.release(n.node.Name, n.pod)
	p.sweep(c.now(), n.shown)
	lack := n.lack
	for pod, placed := range p.placed[n.node.Name] {
		if !n.counted(pod) {
			lack += placed.demand
		}
	}
	p.place(n)
	for _, on := range p.byNode[n.node.Name] {
		if lack <= 0 {
			return true
		}
		if !on.counts(c.now(), n.shown) {
			continue
		}
		on.holders[n.pod] = true
		lack -= n.network.plan.Capacity(on.prefix)
	}
	if lack <= 0 {
		return true
	}
	for prefix := range n.unclaimed {
		size := n.network.plan.Capacity(prefix)
		if size == 0 || !p.free(prefix) {
			continue
		}
		p.add(newClaim(n, prefix))
		if lack -= size; lack <= 0 {
			return true
		}
	}
	p.release(n.node.Name, n.pod)
	c.forgetIfEmpty(n.network.UID)
	return false
}

// release takes back what a pod was reserved on a node. What exists already
// stays the node's; its agent gives it back if nobody uses it.
func (c *claims) release(network types.UID, node string, pod types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.pools[network]; p != nil {
		p.release(node, pod)
		c.forgetIfEmpty(network)
	}
}

// bound notes that the pod will show up among the node's pods.
func (c *claims) bound(network types.UID, node string, pod types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.pools[network]; p != nil && p.placed[node][pod] != nil {
		p.placed[node][pod].bound = c.now()
	}
}

// missing are the blocks that a pod counts on and that are not created yet.
func (c *claims) missing(network types.UID, node string, pod types.UID) []*claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pools[network]
	if p == nil {
		return nil
	}
	var out []*claim
	for _, on := range p.byNode[node] {
		if on.holders[pod] && on.created.IsZero() {
			out = append(out, on)
		}
	}
	return out
}

// onTheWay counts the addresses that are on their way, by node.
func (c *claims) onTheWay(net *network, shown func(name string) bool) map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pools[net.UID]
	if p == nil {
		return nil
	}
	addresses, now := map[string]int{}, c.now()
	for node, claims := range p.byNode {
		for _, on := range claims {
			if on.counts(now, shown) {
				addresses[node] += net.plan.Capacity(on.prefix)
			}
		}
	}
	return addresses
}

// promised are the blocks that no other node may be promised, whatever the
// informer shows.
func (c *claims) promised(network types.UID, shown func(name string) bool) []netip.Prefix {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pools[network]
	if p == nil {
		return nil
	}
	p.sweep(c.now(), shown)
	out := slices.AppendSeq(make([]netip.Prefix, 0, len(p.byBlock)+len(p.taken)), maps.Keys(p.byBlock))
	return slices.AppendSeq(out, maps.Keys(p.taken))
}

// block is the object to create.
func (c *claims) block(on *claim) *v1alpha1.IPBlock {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{
			Name:       on.name,
			Finalizers: []string{v1alpha1.FinalizerIPBlock},
		},
		Spec: v1alpha1.IPBlockSpec{
			Network:    on.network.Name,
			NetworkUID: on.network.UID,
			CIDR:       v1alpha1.CIDR(on.prefix.String()),
			NodeName:   on.node.Name,
			NodeUID:    on.node.UID,
		},
	}
}

// isCreated tells whether the block exists, and is the node's.
func (c *claims) isCreated(on *claim) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !on.created.IsZero()
}

// created notes that the block exists: from now on it stays, whoever counts on it.
func (c *claims) created(on *claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	on.created = c.now()
}

// replace chooses another of the unclaimed blocks for a claim whose own another
// node has. It is false if none is left that serves as many pods.
func (c *claims) replace(on *claim, unclaimed iter.Seq[netip.Prefix]) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pool(on.network.UID)
	p.taken[on.prefix] = taken{on.name, c.now()}
	size := on.network.plan.Capacity(on.prefix)
	for prefix := range unclaimed {
		if on.network.plan.Capacity(prefix) < size || !p.free(prefix) {
			continue
		}
		p.forget(on)
		on.prefix, on.name = prefix, addressing.BlockName(on.network.Name, prefix)
		on.seen.Store(false)
		p.remember(on)
		return true
	}
	return false
}

func (c *claims) now() time.Time {
	if c.clock == nil {
		return time.Now()
	}
	return c.clock.Now()
}

func (c *claims) pool(network types.UID) *pool {
	p := c.pools[network]
	if p == nil {
		p = &pool{
			awaited: &c.awaited,
			byBlock: map[netip.Prefix]*claim{}, byNode: map[string][]*claim{},
			placed: map[string]map[types.UID]*placement{}, taken: map[netip.Prefix]taken{},
		}
		if c.pools == nil {
			c.pools = map[types.UID]*pool{}
		}
		c.pools[network] = p
	}
	return p
}

func (c *claims) forgetIfEmpty(network types.UID) {
	if p := c.pools[network]; p != nil && len(p.byBlock)+len(p.placed)+len(p.taken) == 0 {
		delete(c.pools, network)
	}
}

func (p *pool) free(prefix netip.Prefix) bool {
	_, taken := p.taken[prefix]
	return !taken && p.byBlock[prefix] == nil
}

func (p *pool) remember(on *claim) {
	p.byBlock[on.prefix] = on
	p.awaited.Store(on.name, on)
}

func (p *pool) forget(on *claim) {
	delete(p.byBlock, on.prefix)
	p.awaited.CompareAndDelete(on.name, on)
}

func (p *pool) add(on *claim) {
	p.remember(on)
	p.byNode[on.node.Name] = append(p.byNode[on.node.Name], on)
}

func (p *pool) place(n *need) {
	if p.placed[n.node.Name] == nil {
		p.placed[n.node.Name] = map[types.UID]*placement{}
	}
	p.placed[n.node.Name][n.pod] = &placement{demand: n.demand}
}

// release drops a pod, and every block that is neither created nor counted on
// by another pod.
func (p *pool) release(node string, pod types.UID) {
	if delete(p.placed[node], pod); len(p.placed[node]) == 0 {
		delete(p.placed, node)
	}
	for _, on := range p.byNode[node] {
		delete(on.holders, pod)
	}
	p.drop(node, func(on *claim) bool { return len(on.holders) == 0 && on.created.IsZero() })
}

// sweep forgets what the informers show by now, or must.
func (p *pool) sweep(now time.Time, shown func(name string) bool) {
	for node := range p.byNode {
		p.drop(node, func(on *claim) bool {
			return !on.created.IsZero() && (now.Sub(on.created) > avoidFor || on.seen.Load() || shown(on.name))
		})
	}
	for prefix, by := range p.taken {
		if now.Sub(by.since) > takenFor || shown(by.name) {
			delete(p.taken, prefix)
		}
	}
	if now.Sub(p.swept) < assumeFor {
		return
	}
	p.swept = now
	for node, placed := range p.placed {
		for pod, at := range placed {
			if !at.bound.IsZero() && now.Sub(at.bound) > assumeFor {
				delete(placed, pod)
			}
		}
		if len(placed) == 0 {
			delete(p.placed, node)
		}
	}
}

func (p *pool) drop(node string, gone func(*claim) bool) {
	kept := p.byNode[node][:0]
	for _, on := range p.byNode[node] {
		if gone(on) {
			p.forget(on)
		} else {
			kept = append(kept, on)
		}
	}
	if len(kept) == 0 {
		delete(p.byNode, node)
		return
	}
	p.byNode[node] = kept
}
