// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
)

// settle takes all faults away, and checks what must hold once all is quiet:
// first with the pods that live, then without any, then without Networks.
func (w *world) settle() {
	w.each(func(n *node) {
		n.resync()
		if n.off {
			return
		}
		n.revive()
		n.agent.line.calm()
		n.reap()
	})
	w.controller.line.calm()
	w.eventually("with pods alive", w.agrees)
	w.each(func(n *node) {
		for i, sb := range n.slots {
			if sb == nil {
				continue
			}
			if sb.container != "" {
				n.teardown(sb.container, nowhere)
			}
			w.deletePod(sb.pod)
			n.slots[i] = nil
		}
	})
	w.eventually("with all pods gone", w.whole)
	for _, name := range w.networks {
		w.admin("deleting a Network", func() error {
			return client.IgnoreNotFound(w.api.Delete(w.ctx, &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: name}}))
		})
	}
	w.eventually("with the Networks deleted", w.empty)
}

// each does something on all nodes at once.
func (w *world) each(do func(*node)) {
	var group sync.WaitGroup
	for _, n := range w.nodes {
		group.Go(func() { do(n) })
	}
	group.Wait()
}

// eventually waits until check finds nothing to say.
func (w *world) eventually(what string, check func() []string) {
	if w.failed.Load() {
		return
	}
	began := time.Now()
	var wrong []string
	for time.Since(began) < patience {
		w.each(func(n *node) {
			if !n.off {
				n.revive() // it may have noticed a rollback
			}
		})
		if wrong = check(); len(wrong) == 0 {
			w.log.printf("settled %s after %s", what, time.Since(began))
			return
		}
		time.Sleep(look)
	}
	w.violate("%s, after %s:\n%s", what, patience, strings.Join(wrong, "\n"))
}

// agents are those that run.
func (w *world) agents() []*agent {
	var out []*agent
	for _, n := range w.nodes {
		if !n.off {
			out = append(out, n.agent)
		}
	}
	return out
}

// held is a block in the books of an agent.
type held struct {
	agent *agent
	usage ipam.BlockUsage
}

// books gathers from all agents who holds which block of a Network; two that
// hold the same are a complaint.
func (w *world) books(network string) (books map[netip.Prefix]held, wrong []string) {
	books = map[netip.Prefix]held{}
	for _, a := range w.agents() {
		for _, b := range a.addrs.Usage(network).Blocks {
			if other, taken := books[b.Prefix]; taken {
				wrong = append(wrong, fmt.Sprintf("block %s of %s is in the books of %s and %s", b.Prefix, network, other.agent.node.name, a.node.name))
			}
			books[b.Prefix] = held{a, b}
		}
	}
	return books, wrong
}

func (w *world) blocks(network string) []v1alpha1.IPBlock {
	var list v1alpha1.IPBlockList
	w.admin("listing blocks", func() error {
		return w.api.List(w.ctx, &list, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: network})
	})
	return list.Items
}

// agrees compares what API server, agents and machines say: every block has
// the right holder, every lease belongs to a living interface.
func (w *world) agrees() []string {
	var wrong []string
	for _, network := range w.networks {
		books, twice := w.books(network)
		wrong = append(wrong, twice...)
		for _, b := range w.blocks(network) {
			prefix := prefixOf(&b)
			h, known := books[prefix]
			delete(books, prefix)
			switch {
			case b.Spec.NodeUID != w.uidOf(b.Spec.NodeName):
				if !w.awaited(&b) {
					wrong = append(wrong, fmt.Sprintf("block %s is of a Node %s that is gone, and nothing of it lives", b.Name, b.Spec.NodeName))
				}
			case !known:
				wrong = append(wrong, fmt.Sprintf("block %s is of node %s, whose agent does not know it", b.Name, b.Spec.NodeName))
			case h.agent.node.name != b.Spec.NodeName:
				wrong = append(wrong, fmt.Sprintf("block %s is of node %s, but in the books of %s", b.Name, b.Spec.NodeName, h.agent.node.name))
			}
		}
		for prefix, h := range books {
			wrong = append(wrong, fmt.Sprintf("block %s of %s is in the books of %s only", prefix, network, h.agent.node.name))
		}
	}
	for _, a := range w.agents() {
		wrong = append(wrong, a.strayLeases()...)
	}
	return wrong
}

// awaited tells that pods of a Node that registered anew hold a block of the
// former one, or that addresses of the block live on whichever machine: after a
// rollback a block may name a Node that the restored state does not know, while
// another node's pods are in it.
func (w *world) awaited(block *v1alpha1.IPBlock) bool {
	prefix := prefixOf(block)
	for _, n := range w.nodes {
		for _, c := range w.kernel.of(n.name) {
			for _, addr := range w.kernel.addresses(c.id) {
				if prefix.Contains(addr) {
					return true
				}
			}
		}
		if n.name != block.Spec.NodeName {
			continue
		}
		for _, sb := range n.slots {
			if slices.Contains(podNets(sb), block.Spec.Network) {
				return true
			}
		}
	}
	return false
}

// strayLeases compares an agent's leases with its machine's interfaces.
func (a *agent) strayLeases() []string {
	var wrong []string
	living := map[string]netip.Addr{}
	for _, c := range a.node.world.kernel.of(a.node.name) {
		for ifname, addr := range a.node.world.kernel.addresses(c.id) {
			living[c.id+" "+ifname] = addr
		}
	}
	for _, l := range a.addrs.Leases() {
		key := l.ContainerID + " " + l.IfName
		if living[key] != l.Address {
			wrong = append(wrong, fmt.Sprintf("node %s: %s is leased to %s, which has %s", a.node.name, l.Address, key, living[key]))
		}
		delete(living, key)
	}
	for key, addr := range living {
		wrong = append(wrong, fmt.Sprintf("node %s: %s has %s without a lease", a.node.name, key, addr))
	}
	return wrong
}

// whole tells whether every address can be given out again: each is free on
// the node that holds its block, or nobody has claimed it.
func (w *world) whole() []string {
	wrong := w.agrees()
	for _, name := range w.networks {
		var network v1alpha1.Network
		w.admin("reading a Network", func() error { return w.api.Get(w.ctx, client.ObjectKey{Name: name}, &network) })
		plan, err := addressing.NewPlan(name, &network.Spec)
		if err != nil {
			return append(wrong, err.Error())
		}
		books, _ := w.books(name)
		reachable := plan.TotalCapacity()
		for _, b := range w.blocks(name) {
			prefix := prefixOf(&b)
			u := books[prefix].usage
			if b.DeletionTimestamp != nil || !u.Open {
				wrong = append(wrong, fmt.Sprintf("block %s of node %s is closed (deleted: %v)", b.Name, b.Spec.NodeName, b.DeletionTimestamp))
				reachable -= int64(plan.Capacity(prefix))
				continue
			}
			reachable += int64(u.Free - plan.Capacity(prefix))
		}
		if reachable != plan.TotalCapacity() {
			wrong = append(wrong, fmt.Sprintf("of %d addresses of %s only %d can be given out", plan.TotalCapacity(), name, reachable))
		}
	}
	return wrong
}

// empty tells whether the Networks are gone, and all that the agents knew of them.
func (w *world) empty() []string {
	var wrong []string
	for _, name := range w.networks {
		err := w.api.Get(w.ctx, client.ObjectKey{Name: name}, &v1alpha1.Network{})
		if client.IgnoreNotFound(err) != nil || err == nil {
			wrong = append(wrong, fmt.Sprintf("Network %s is there still: %v", name, err))
		}
		for _, b := range w.blocks(name) {
			wrong = append(wrong, fmt.Sprintf("block %s of node %s is there still", b.Name, b.Spec.NodeName))
		}
	}
	for _, a := range w.agents() {
		if known := a.addrs.Networks(); len(known) > 0 {
			wrong = append(wrong, fmt.Sprintf("the agent of %s knows %v still", a.node.name, known))
		}
	}
	return wrong
}

// end stops all that runs, and leaves nothing to the next run.
func (w *world) end() {
	w.each(func(n *node) {
		if n.agent != nil && !n.off {
			n.agent.die()
			w.check(n.agent.bury())
		}
	})
	w.controller.stop()
	for _, name := range w.networks {
		for _, b := range w.blocks(name) {
			b.Finalizers = nil
			w.check(client.IgnoreNotFound(w.api.Update(w.ctx, &b)))
			w.check(client.IgnoreNotFound(w.api.Delete(w.ctx, &b)))
		}
	}
	now := client.GracePeriodSeconds(0)
	w.check(w.api.DeleteAllOf(w.ctx, &corev1.Pod{}, client.InNamespace(metav1.NamespaceDefault), now))
	w.check(w.api.DeleteAllOf(w.ctx, &v1alpha1.NodeNetwork{}))
	w.check(w.api.DeleteAllOf(w.ctx, &corev1.Node{}))
	w.check(w.api.DeleteAllOf(w.ctx, &v1alpha1.PhysicalNetwork{}))
}
