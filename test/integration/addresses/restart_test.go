// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
)

// An agent without memory starts while etcd is set back: it lists all but blocks
// before. No cache goes back then, and the watch of blocks is live while that of
// Pods waits in silence.
func TestAnAgentThatStartsAmidARollbackOpensNothing(t *testing.T) {
	w := newWorld(t, &plan{rollback: true, networks: []networkPlan{{bits: 24, blockSize: 8}}, nodes: [][]step{{{}}, {{}}}}, "amid")
	defer func() {
		w.each(func(n *node) {
			n.agent.die()
			w.check(n.agent.bury())
		})
		w.controller.stop()
		w.check(w.log.drop())
		for _, violation := range w.violations {
			t.Error(violation)
		}
	}()
	w.start()
	n := w.nodes[0]
	w.backup()
	n.powerOff() // journal and version file go with it
	n.blocks.set(true)
	a, err := n.startAgent()
	if err != nil {
		t.Fatal(err)
	}
	n.agent = a
	for _, obj := range []client.Object{&corev1.Pod{}, &corev1.Node{}, &v1alpha1.Network{}, &v1alpha1.NodeNetwork{}} {
		informer, err := a.caches.GetInformer(a.ctx, obj, cache.BlockUntilSynced(false))
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(patience); !informer.HasSynced(); time.Sleep(poll) {
			if time.Now().After(deadline) {
				t.Fatalf("the cache of %T is not filled", obj)
			}
		}
	}
	w.frozen.set(true)
	for _, l := range w.lines() {
		l.hangUp()
	}
	w.check(apiServer.Rewind(w.backupDir()))
	w.frozen.set(false)
	w.scheduleAnywhere(n)
	n.blocks.set(false)

	ask := ipam.Ask{Network: w.networks[0], Owner: ipam.Owner{PodUID: "uid", PodNamespace: metav1.NamespaceDefault, PodName: "p", ContainerID: "c", IfName: "net1"}}
	for deadline := time.Now().Add(patience); !a.dead.Load(); time.Sleep(poll) {
		if time.Now().After(deadline) {
			t.Fatal("the agent does not notice that its caches are of two states")
		}
		if leases, err := a.addrs.Reserve(a.ctx, []ipam.Ask{ask}); err == nil {
			t.Fatalf("%s was given out", leases[0].Address)
		}
	}
}

// scheduleAnywhere creates a block for the node as the scheduler does.
func (w *world) scheduleAnywhere(n *node) {
	var network v1alpha1.Network
	var blocks v1alpha1.IPBlockList
	w.admin("looking at a Network", func() error {
		if err := w.api.Get(w.ctx, client.ObjectKey{Name: w.networks[0]}, &network); err != nil {
			return err
		}
		return w.api.List(w.ctx, &blocks, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: network.Name})
	})
	plan, err := addressing.NewPlan(network.Name, &network.Spec)
	w.check(err)
	taken := map[string]bool{}
	for i := range blocks.Items {
		taken[blocks.Items[i].Name] = true
	}
	for prefix := range plan.Candidates("scheduler") {
		if taken[addressing.BlockName(network.Name, prefix)] {
			continue
		}
		w.admin("creating a block", func() error {
			return w.createOrGet(&v1alpha1.IPBlock{
				ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName(network.Name, prefix), Finalizers: []string{v1alpha1.FinalizerIPBlock}},
				Spec: v1alpha1.IPBlockSpec{
					Network: network.Name, NetworkUID: network.UID, CIDR: v1alpha1.CIDR(prefix.String()), NodeName: n.name, NodeUID: n.currentUID(),
				},
			})
		})
		return
	}
}
