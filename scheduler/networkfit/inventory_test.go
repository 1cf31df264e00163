// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2/ktesting"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// existingAnew are the blocks of a network, read from all IPBlocks. It is what
// an inventory is held against.
func existingAnew(s *Sources, network string) map[netip.Prefix]bool {
	out := map[netip.Prefix]bool{}
	for _, obj := range s.blocks.List() {
		if b, ok := obj.(*block); ok && b.networkName() == network {
			out[b.cidr] = true
		}
	}
	return out
}

// claimableAnew counts as Sources.claimable does, and unclaimedAnew lists as
// Sources.unclaimed, from existingAnew.
func claimableAnew(s *Sources, net *network) int64 {
	promised := s.claims.promised(net.UID, s.shown)
	existing := existingAnew(s, net.Name)
	for _, prefix := range promised {
		existing[prefix] = true
	}
	left := net.plan.TotalCapacity()
	for prefix := range existing {
		if net.plan.CheckBlock(prefix) == nil {
			left -= int64(net.plan.Capacity(prefix))
		}
	}
	return left
}

func unclaimedAnew(s *Sources, net *network, node string) []netip.Prefix {
	existing := existingAnew(s, net.Name)
	var out []netip.Prefix
	for prefix := range net.plan.Candidates(node) {
		if !existing[prefix] {
			out = append(out, prefix)
		}
	}
	return out
}

// chronicle is a random history of the blocks of two Networks.
type chronicle struct {
	*testing.T
	*tight
	random   *rand.Rand
	networks map[string]*network
	blocks   map[string]*v1alpha1.IPBlock // as the API server has them
	versions int
}

func TestInventoriesFollowRandomHistories(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			c := &chronicle{
				T: t, tight: newTight(t, 3), random: rand.New(rand.NewPCG(seed, 2)), blocks: map[string]*v1alpha1.IPBlock{},
				networks: map[string]*network{"data": makeNetwork("data", aTightNetwork), "backup": makeNetwork("backup", aTightNetwork)},
			}
			for step := range 600 {
				done := c.step()
				for _, net := range c.networks {
					if c.random.IntN(3) == 0 {
						continue // changes pile up until somebody asks
					}
					c.compare(fmt.Sprintf("step %d: %s", step, done), net)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

func (c *chronicle) step() string {
	name := []string{"data", "backup"}[c.random.IntN(2)]
	switch net := c.networks[name]; c.random.IntN(12) {
	case 0, 1, 2, 3:
		c.claim(net)
		return "claim"
	case 4:
		c.reserve()
		return "reserve"
	case 5, 6:
		return c.release(false)
	case 7, 8:
		return c.release(true)
	case 9:
		c.relist()
		return "relist"
	case 10:
		// Only the spec lays the blocks out anew; a status does not.
		c.networks[name] = c.anew(net, c.random.IntN(3) > 0)
		return "Network changed"
	default:
		c.sources.inventories.forget(name)
		return "forget"
	}
}

func (c *chronicle) compare(when string, net *network) {
	c.Helper()
	node := string(rune('a' + c.random.IntN(3)))
	if got, want := slices.Collect(c.sources.unclaimed(net, node)), unclaimedAnew(c.sources, net, node); !slices.Equal(got, want) {
		c.Errorf("%s: unclaimed of %s are %v, read anew %v", when, net.Name, got, want)
	}
	if got, want := c.sources.claimable(net), claimableAnew(c.sources, net); got != want {
		c.Errorf("%s: %d addresses of %s are claimable, counted anew %d", when, got, net.Name, want)
	}
}

// claim makes a block, of the plan or not.
func (c *chronicle) claim(net *network) {
	cidrs := []string{fmt.Sprintf("10.0.1.%d/29", 8*c.random.IntN(32)), fmt.Sprintf("10.0.1.%d/28", 16*c.random.IntN(8))}
	prefix := netip.MustParsePrefix(cidrs[min(1, c.random.IntN(8)/7)])
	c.versions++
	block := &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName(net.Name, prefix), UID: types.UID(fmt.Sprint(c.versions))},
		Spec: v1alpha1.IPBlockSpec{
			Network: net.Name, NetworkUID: net.UID, CIDR: v1alpha1.CIDR(prefix.String()), NodeName: fmt.Sprint("n", c.random.IntN(3)), NodeUID: "uid",
		},
	}
	if c.blocks[block.Name] == nil {
		c.blocks[block.Name] = block
		_ = c.sources.blocks.Add(block)
	}
}

// reserve promises a block, which may be one that another claims.
func (c *chronicle) reserve() {
	c.versions++
	pod, state := makePod(fmt.Sprint("p", c.versions), "data"), newCycleState()
	if _, status := c.PreFilter(c.Context(), state, pod, nil); status.IsSuccess() {
		c.Reserve(c.Context(), state, pod, string(rune('a'+c.random.IntN(3))))
	}
}

// release has a block begin to go, or go.
func (c *chronicle) release(gone bool) string {
	for name, block := range c.blocks {
		if gone {
			delete(c.blocks, name)
			_ = c.sources.blocks.Delete(block)
			return "gone"
		}
		block = block.DeepCopy()
		block.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
		c.blocks[name] = block
		_ = c.sources.blocks.Update(block)
		return "leaving"
	}
	return "nothing"
}

// relist is an interrupted watch, during which blocks went.
func (c *chronicle) relist() {
	var all, lost []any
	for name, block := range c.blocks {
		if c.random.IntN(3) == 0 {
			delete(c.blocks, name)
			lost = append(lost, stored(block))
		} else {
			all = append(all, block)
		}
	}
	_ = c.sources.blocks.Replace(all, "")
	for _, obj := range lost {
		c.sources.staleness().OnDelete(cache.DeletedFinalStateUnknown{Obj: obj})
	}
}

// anew is another version of a Network, with another spec or with the same. The
// generation stays, as it may where the API server's state was set back.
func (c *chronicle) anew(net *network, sameSpec bool) *network {
	object := net.DeepCopy()
	if !sameSpec {
		object.Spec.AdditionalSubnets = nil
		if c.random.IntN(2) == 0 {
			object.Spec.AdditionalSubnets = []v1alpha1.CIDR{"10.0.1.128/26"}
		}
		if c.random.IntN(4) == 0 {
			c.versions++
			object.UID = types.UID(fmt.Sprint(c.versions))
		}
	}
	made := newNetwork(object)
	_ = c.sources.networks.Update(made)
	return made
}

// Whoever has changed the store sees the change, whatever others do meanwhile;
// and nothing of what others do gets lost.
func TestAnInventoryIsNeverBehindTheStore(t *testing.T) {
	w := newTight(t, 4)
	net, _ := lookup[*network](w.sources.networks, "data")
	all := slices.Collect(net.plan.Candidates("somebody"))
	var workers sync.WaitGroup
	for worker := range 4 {
		workers.Go(func() {
			mine := all[worker*4 : worker*4+4]
			for round := range 400 {
				prefix := mine[round%4]
				block := &v1alpha1.IPBlock{
					ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName("data", prefix)},
					Spec:       v1alpha1.IPBlockSpec{Network: "data", NetworkUID: net.UID, CIDR: v1alpha1.CIDR(prefix.String()), NodeName: "n"},
				}
				_ = w.sources.blocks.Add(block)
				if slices.Contains(slices.Collect(w.sources.unclaimed(net, "a")), prefix) {
					t.Errorf("%s is claimed, and unclaimed", prefix)
				}
				w.sources.claimable(net)
				if round >= 396 {
					continue // these stay
				}
				_ = w.sources.blocks.Delete(block)
				if !slices.Contains(slices.Collect(w.sources.unclaimed(net, "a")), prefix) {
					t.Errorf("%s is neither claimed nor unclaimed", prefix)
				}
				if worker == 0 && round%50 == 0 {
					w.sources.inventories.forget("data")
				}
			}
		})
	}
	workers.Wait()
	if left := w.sources.claimable(net); left != 0 {
		t.Errorf("all blocks are claimed, but %d addresses are claimable", left)
	}
}

// A pod that waits for a block is told of one that went while the informer
// listed anew; the block must be free by then.
func TestABlockThatWentUnseenIsFreeWhenPodsWake(t *testing.T) {
	w := newTight(t, 1)
	net, _ := lookup[*network](w.sources.networks, "data")
	block := w.claimedBy("elsewhere", netip.MustParsePrefix("10.0.1.8/29"))
	w.show(block.Name)
	before := w.sources.claimable(net)
	_ = w.sources.blocks.Replace(nil, "2")
	logger, _ := ktesting.NewTestContext(t)
	if _, err := w.afterIPBlockDeleted(logger, makePod("p", "data"), cache.DeletedFinalStateUnknown{Obj: stored(block)}, nil); err != nil {
		t.Fatal(err)
	}
	if got := w.sources.claimable(net); got != before+7 {
		t.Errorf("%d addresses are claimable, want %d", got, before+7)
	}
}

func TestNothingIsRememberedOfNetworksThatAreNotTight(t *testing.T) {
	tight := makeNetwork("data", aTightNetwork)
	for name, forget := range map[string]func(cache.ResourceEventHandler){
		"relaxed": func(handler cache.ResourceEventHandler) { handler.OnUpdate(tight, makeNetwork("data")) },
		"deleted": func(handler cache.ResourceEventHandler) { handler.OnDelete(tight) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newTight(t, 1)
			w.sources.claimable(tight)
			if len(w.sources.inventories.byName) != 1 {
				t.Fatal("nothing is remembered of a Tight network")
			}
			w.sources.staleness().OnUpdate(tight, tight)
			if len(w.sources.inventories.byName) != 1 {
				t.Error("a Network that stays Tight is forgotten")
			}
			forget(w.sources.staleness())
			if len(w.sources.inventories.byName) != 0 {
				t.Error("it is remembered still")
			}
		})
	}
}

// What one pod costs of a /16 that 5,000 nodes share, half of whose blocks are
// claimed, one of them since the pod before: the count of what is claimable, and the
// block to claim next, from what is remembered and from all blocks. The figure
// anew/kept is how many times faster the former is.
func BenchmarkInventory(b *testing.B) {
	pl, _ := tightCluster(b, tightBlocks/2)
	s := pl.sources
	net, _ := lookup[*network](s.networks, "data")
	next := func(blocks func(func(netip.Prefix) bool)) (prefix netip.Prefix) {
		blocks(func(p netip.Prefix) bool { prefix = p; return false })
		return prefix
	}
	var other *v1alpha1.IPBlock
	for prefix := range s.unclaimed(net, "other") {
		other = (&tight{api: &fakeAPI{blocks: map[string]*v1alpha1.IPBlock{}}}).claimedBy("other", prefix)
		break
	}
	var kept, anew time.Duration
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			_ = s.blocks.Add(other)
		} else {
			_ = s.blocks.Delete(other)
		}
		begin := time.Now()
		left, first := s.claimable(net), next(s.unclaimed(net, "node-0"))
		middle := time.Now()
		leftAnew, firstAnew := claimableAnew(s, net), next(slices.Values(unclaimedAnew(s, net, "node-0")))
		kept, anew = kept+middle.Sub(begin), anew+time.Since(middle)
		if left != leftAnew || first != firstAnew {
			b.Fatalf("remembered %d and %s, read anew %d and %s", left, first, leftAnew, firstAnew)
		}
	}
	b.ReportMetric(float64(kept.Nanoseconds())/float64(b.N), "kept-ns/op")
	b.ReportMetric(float64(anew.Nanoseconds())/float64(b.N), "anew-ns/op")
	b.ReportMetric(float64(anew)/float64(kept), "anew/kept")
}
