// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
)

// capacity of 10.x.0.0/26 in blocks of 8: each block has one address for the
// node, the first and the last one lose one more.
const capacity = 8*7 - 2

func TestFiveAgentsShareASmallNetwork(t *testing.T) {
	w := newWorld(t)
	var agents []*agent
	var owners [][]ipam.Owner // two pods of each node
	for i := range 5 {
		node := fmt.Sprintf("five-%d", i)
		w.node(node, "five")
		// Every node could use up the whole network: the agents fight for each block.
		owners = append(owners, w.pod(node, "five", 30), w.pod(node, "five", 30))
	}
	for i := range 5 {
		agents = append(agents, w.agent(fmt.Sprintf("five-%d", i)))
	}
	w.network("five", "10.50.0.0/26")

	w.eventually("all blocks are claimed", func() string {
		if n := len(w.blocks("five")); n != 8 {
			return fmt.Sprintf("%d blocks are claimed, want 8", n)
		}
		return ""
	})
	w.agree("five", agents...)

	// Every address is given to one interface, and not one more.
	var mu sync.Mutex
	got := map[string]ipam.Owner{}
	var wg sync.WaitGroup
	for i, a := range agents {
		wg.Go(func() {
			for _, owner := range slices.Concat(owners[2*i], owners[2*i+1]) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				leases, err := a.Reserve(ctx, []ipam.Ask{{Owner: owner, Network: "five"}})
				cancel()
				if err != nil {
					return
				}
				mu.Lock()
				if other, taken := got[leases[0].Address.String()]; taken {
					t.Errorf("%s %s has %s, which %s %s has", owner.PodName, owner.IfName, leases[0].Address, other.PodName, other.IfName)
				}
				got[leases[0].Address.String()] = owner
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(got) != capacity {
		t.Errorf("%d addresses were given out, want %d", len(got), capacity)
	}
}

func TestABlockInUseIsReleasedWithItsLastPod(t *testing.T) {
	w := newWorld(t)
	w.node("release-0", "release")
	owner := w.pods("release-0", "release", 1)[0]
	w.network("release", "10.51.0.0/26")
	a := w.agent("release-0")
	address := a.reserve(owner, "release")
	lease := a.Leases()[0]
	w.agree("release", a)

	block := &v1alpha1.IPBlock{}
	block.Name = "release." + strings.ReplaceAll(lease.Block.String(), "/", "-")
	w.must(w.Delete(t.Context(), block))
	w.eventually("a warm block replaces the deleted one", func() string {
		if blocks := a.held("release"); len(blocks) != 2 || !slices.Contains(blocks, lease.Block.String()+" release-0 !") {
			return fmt.Sprint("the agent has ", blocks)
		}
		return ""
	})
	if again := a.reserve(owner, "release"); again != address {
		t.Errorf("the repeated ADD got %s, want %s", again, address)
	}
	time.Sleep(300 * time.Millisecond) // longer than the grace
	if blocks := w.agree("release", a); len(blocks) != 2 {
		t.Errorf("a block with a pod in it went: %v", blocks)
	}
	w.must(a.Release(t.Context(), owner.ContainerID))
	w.eventually("the empty block goes", func() string {
		if blocks := w.blocks("release"); len(blocks) != 1 {
			return fmt.Sprint("there are ", blocks)
		}
		return ""
	})
}

func TestLostRepliesLeakNoBlock(t *testing.T) {
	w := newWorld(t)
	var agents []*agent
	for i := range 3 {
		node := fmt.Sprintf("lost-%d", i)
		w.node(node, "lost")
		w.pods(node, "lost", 18)
		a := w.agent(node)
		a.lose.Store(3)
		agents = append(agents, a)
	}
	w.network("lost", "10.52.0.0/24") // 32 blocks
	w.eventually("every agent has enough for its pods", func() string {
		for _, a := range agents {
			if free := freeOf(a, "lost"); free < 18+2 {
				return fmt.Sprintf("%s has %d addresses", a.node, free)
			}
		}
		return ""
	})
	blocks := w.agree("lost", agents...)
	for _, a := range agents {
		if a.lose.Load() > 0 {
			t.Errorf("%s lost too few replies", a.node)
		}
		// 20 addresses are 3 blocks, or 4 if one is the first or the last of the subnet.
		if n := len(a.held("lost")); n > 4 {
			t.Errorf("%s claimed %d blocks: %v", a.node, n, blocks)
		}
	}
}

func freeOf(a *agent, network string) int {
	free := 0
	for _, b := range a.Usage(network).Blocks {
		free += b.Free
	}
	return free
}

func TestARestartedAgentGoesOn(t *testing.T) {
	w := newWorld(t)
	w.node("restart-0", "restart")
	owners := w.pods("restart-0", "restart", 4)
	w.network("restart", "10.53.0.0/26")
	a := w.agent("restart-0")
	for _, owner := range owners[:2] {
		a.reserve(owner, "restart")
	}
	before, blocks := a.Leases(), w.agree("restart", a)
	a.stop()
	a.start()
	creates := a.creates.Load()
	for i, lease := range before {
		if got := a.reserve(lease.Owner, "restart"); got != lease.Address.String() {
			t.Errorf("pod %d moved from %s to %s", i, lease.Address, got)
		}
	}
	for _, owner := range owners[2:] {
		a.reserve(owner, "restart")
	}
	if after := w.agree("restart", a); !slices.Equal(blocks, after) || a.creates.Load() != creates {
		t.Errorf("blocks before %v, after %v", blocks, after)
	}
}

func TestSpareBlocksAndThoseOfADeletedNetworkGo(t *testing.T) {
	w := newWorld(t)
	w.node("idle-0", "idle")
	owners := w.pods("idle-0", "idle", 12)
	network := w.network("idle", "10.54.0.0/26")
	a := w.agent("idle-0")
	for _, owner := range owners {
		a.reserve(owner, "idle")
	}
	peak := len(w.agree("idle", a))
	for _, owner := range owners[1:] {
		w.must(a.Release(t.Context(), owner.ContainerID))
		w.must(w.Delete(t.Context(), podOf(owner), client.GracePeriodSeconds(0)))
	}
	w.eventually("spare blocks are given back", func() string {
		if blocks := w.blocks("idle"); len(blocks) >= peak || len(blocks) != 1 {
			return fmt.Sprintf("there are %v of %d", blocks, peak)
		}
		return ""
	})

	network.Finalizers = []string{v1alpha1.FinalizerNetwork}
	w.must(w.Update(t.Context(), network), w.Delete(t.Context(), network))
	time.Sleep(500 * time.Millisecond)
	if blocks := w.blocks("idle"); len(blocks) != 1 {
		t.Errorf("the block with a pod in it went with its Network: %v", blocks)
	}
	w.must(a.Release(t.Context(), owners[0].ContainerID))
	w.must(w.Delete(t.Context(), podOf(owners[0]), client.GracePeriodSeconds(0)))
	w.eventually("the last block goes", func() string {
		if blocks := w.blocks("idle"); len(blocks) > 0 {
			return fmt.Sprint("there are ", blocks)
		}
		return ""
	})
	w.must(w.Get(t.Context(), client.ObjectKeyFromObject(network), network))
	network.Finalizers = nil
	w.must(w.Update(t.Context(), network))
	w.eventually("the agent forgets the network", func() string {
		if slices.Contains(a.Networks(), "idle") {
			return "it has not"
		}
		return ""
	})
}
