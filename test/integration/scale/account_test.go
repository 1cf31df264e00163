// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
)

// account is who has what of the Network: an account of the test's own, from
// pods and blocks alone.
type account struct {
	plan    *addressing.Plan
	blocks  []v1alpha1.IPBlock
	held    map[string]int  // capacity of a node's blocks, by node
	used    map[string]int  // by pods that are bound, by node
	claimed map[string]bool // block names, those that are given back included
	bound   []*corev1.Pod
	pending []*corev1.Pod
}

// look takes the account from a reader.
func (w *world) look(from client.Reader) *account {
	w.t.Helper()
	plan, err := addressing.NewPlan(w.network.Name, &w.network.Spec)
	must(w.t, err)
	a := &account{plan: plan, held: map[string]int{}, used: map[string]int{}, claimed: map[string]bool{}}
	var pods corev1.PodList
	var blocks v1alpha1.IPBlockList
	must(w.t, from.List(w.t.Context(), &pods, client.InNamespace("default"), client.UnsafeDisableDeepCopy), from.List(w.t.Context(), &blocks, client.UnsafeDisableDeepCopy))
	a.blocks = blocks.Items
	for i := range blocks.Items {
		block := &blocks.Items[i]
		a.claimed[block.Name] = true
		if block.DeletionTimestamp == nil {
			a.held[block.Spec.NodeName] += plan.Capacity(netip.MustParsePrefix(string(block.Spec.CIDR)))
		}
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Spec.NodeName == "" {
			a.pending = append(a.pending, pod)
		} else {
			a.bound = append(a.bound, pod)
			a.used[pod.Spec.NodeName] += demandOf(pod)
		}
	}
	return a
}

func demandOf(pod *corev1.Pod) int {
	return 1 + strings.Count(pod.Annotations[v1alpha1.AnnotationNetworks], ",")
}

// free are the addresses that pods on a node may still have.
func (a *account) free(node string) int { return a.held[node] - a.used[node] }

// unclaimedBlocks are those that no node has.
func (a *account) unclaimedBlocks() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for prefix := range a.plan.Candidates("") {
			if !a.claimed[addressing.BlockName(networkName, prefix)] && !yield(prefix) {
				return
			}
		}
	}
}

// unclaimed is how many addresses the largest of unclaimedBlocks has; 0 if there is none.
func (a *account) unclaimed() (largest int) {
	for prefix := range a.unclaimedBlocks() {
		largest = max(largest, a.plan.Capacity(prefix))
	}
	return largest
}

// starved names the pods that are pending though addresses could serve them.
// All of a pod's addresses come from one node's blocks, and from one more at most.
func (a *account) starved() []string {
	var out []string
	unclaimed := a.unclaimed()
	roomiest := unclaimed
	for node := range a.held {
		roomiest = max(roomiest, a.free(node)+unclaimed)
	}
	for _, pod := range a.pending {
		room := roomiest
		if node := mayRunOn(pod); node != "" {
			room = a.free(node) + unclaimed
		}
		if demandOf(pod) <= room {
			out = append(out, fmt.Sprintf("pod %s wants %d addresses and could have one of %d", pod.Name, demandOf(pod), room))
		}
	}
	return out
}

// wrong tells what must never be: blocks that overlap, and nodes with more
// pods than addresses.
func (a *account) wrong() []string {
	var out []string
	prefixes := make([]netip.Prefix, 0, len(a.blocks))
	for i := range a.blocks {
		prefixes = append(prefixes, netip.MustParsePrefix(string(a.blocks[i].Spec.CIDR)))
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	for i := 1; i < len(prefixes); i++ {
		if prefixes[i-1].Overlaps(prefixes[i]) {
			out = append(out, fmt.Sprintf("blocks %s and %s overlap", prefixes[i-1], prefixes[i]))
		}
	}
	for node := range a.used {
		if a.free(node) < 0 {
			out = append(out, fmt.Sprintf("node %s has %d addresses for pods that want %d", node, a.held[node], a.used[node]))
		}
	}
	return out
}

// awaitBound waits until so many pods are bound and have their addresses.
func (w *world) awaitBound(count int) {
	w.t.Helper()
	w.eventually(func() (string, int) {
		a := w.look(w.seen)
		started, _ := w.fleet.leases()
		if len(a.bound) == count && len(started) == count {
			return "", 0
		}
		return fmt.Sprintf("%d pods are bound and %d have addresses, want %d; %d are pending, of which could be served:\n%s",
			len(a.bound), len(started), count, len(a.pending), shorten(a.starved())), len(a.bound) + len(started)
	})
}

// giveBack ends pods that have a node of the Network to themselves, and lets
// the graces pass after which the agents part with the blocks.
func (w *world) giveBack(pods []*corev1.Pod) {
	w.t.Helper()
	running := len(w.look(w.seen).bound)
	w.end(pods...)
	w.eventually(func() (string, int) {
		if bound := len(w.look(w.seen).bound); bound != running-len(pods) {
			return fmt.Sprintf("%d pods are bound, want %d", bound, running-len(pods)), bound
		}
		return "", 0
	})
	w.fleet.elapse(ipam.DefaultScarceGrace)
	w.awaitClosed(len(pods))
	w.fleet.elapse(ipam.DefaultDrainGrace)
	w.awaitClosed(0)
}

// awaitClosed waits until agents are about to part with so many blocks.
func (w *world) awaitClosed(count int) {
	w.t.Helper()
	w.eventually(func() (string, int) {
		if closed := w.fleet.closed(); closed != count {
			return fmt.Sprintf("%d blocks are given back, want %d", closed, count), closed
		}
		return "", 0
	})
}

// awaitReasons waits until the scheduler has said of each pending pod why it waits.
func (w *world) awaitReasons(want string) {
	w.t.Helper()
	w.eventually(func() (string, int) {
		var silent []string
		for _, pod := range w.look(w.seen).pending {
			if said := unschedulable(pod); !strings.Contains(said, want) {
				silent = append(silent, fmt.Sprintf("of pod %s the scheduler says %q", pod.Name, said))
			}
		}
		if len(silent) > 0 {
			return fmt.Sprintf("want %q, but\n%s", want, shorten(silent)), len(silent)
		}
		return "", 0
	})
}

func unschedulable(pod *corev1.Pod) string {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable {
			return c.Message
		}
	}
	return ""
}

// check asks the API server itself, when nothing is under way, and returns the
// account that it has found nothing wrong with.
func (w *world) check() *account {
	w.t.Helper()
	a := w.look(w.api)
	count, twice := w.fleet.leases()
	for _, complaint := range [][]string{a.wrong(), a.starved(), w.fleet.refusals(), twice} {
		if len(complaint) > 0 {
			w.t.Errorf("%d of:\n%s", len(complaint), shorten(complaint))
		}
	}
	for _, pod := range a.bound {
		if got := count[containerOf(pod)]; got != demandOf(pod) {
			w.t.Errorf("pod %s has %d addresses, want %d", pod.Name, got, demandOf(pod))
		}
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
	return a
}

// shorten keeps the first few lines.
func shorten(lines []string) string {
	const enough = 10
	if len(lines) > enough {
		lines = append(slices.Clone(lines[:enough]), "...")
	}
	return strings.Join(lines, "\n")
}

// total is how many addresses pods use.
func (a *account) total() (sum int64) {
	for _, used := range a.used {
		sum += int64(used)
	}
	return sum
}

// alone are pods that have a node of the Network to themselves.
func alone(a *account, count int) []*corev1.Pod {
	var out []*corev1.Pod
	for _, pod := range a.bound {
		if len(out) < count && a.used[pod.Spec.NodeName] == demandOf(pod) {
			out = append(out, pod)
		}
	}
	return out
}

// room is how many pods that want so many addresses each find them if every
// block is its own node's, and how many addresses are left then.
func (w *world) room(each int) (large, small int) {
	w.t.Helper()
	a := w.check()
	count := func(free int) {
		large += free / each
		small += free % each
	}
	for node := range a.held {
		count(a.free(node))
	}
	for prefix := range a.unclaimedBlocks() {
		count(a.plan.Capacity(prefix))
	}
	return large, small
}
