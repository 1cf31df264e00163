// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/netcontroller/ipblock"
	"github.com/netplane/netplane/netcontroller/network"
)

// grace is the controller's before blocks of a node that is gone are released.
const grace = 2 * time.Second

// controller runs the part of netplane-controller that frees blocks and keeps
// the status of Networks, until the test ends.
func (w *world) controller() {
	w.t.Helper()
	skip := true
	mgr, err := ctrl.NewManager(quick(), ctrl.Options{
		Scheme:     w.Scheme(),
		Metrics:    server.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: &skip},
	})
	w.must(err)
	w.must(network.Setup(mgr, network.Options{CounterInterval: 100 * time.Millisecond, Registerer: prometheus.NewRegistry()}))
	w.must(ipblock.Setup(mgr, ipblock.Options{Grace: grace}))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("stopping the controller: %v", err)
		}
	})
}

// backedNetwork makes a Network, with its PhysicalNetwork, that the controller
// finds Ready.
func (w *world) backedNetwork(name string, spec v1alpha1.NetworkSpec) *v1alpha1.Network {
	w.t.Helper()
	physical := &v1alpha1.PhysicalNetwork{ObjectMeta: metav1.ObjectMeta{Name: "phy-" + name}}
	w.must(client.IgnoreAlreadyExists(w.Create(w.t.Context(), physical)))
	spec.PhysicalNet, spec.Plugin = physical.Name, v1alpha1.PluginMacvlan
	if spec.BlockSize == 0 {
		spec.BlockSize = 8
	}
	out := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	w.must(w.Create(w.t.Context(), out))
	w.eventually("Network "+name+" is Ready", func() string {
		w.must(w.Get(w.t.Context(), client.ObjectKeyFromObject(out), out))
		for _, c := range out.Status.Conditions {
			if c.Type == v1alpha1.ConditionReady && c.Status == metav1.ConditionTrue {
				return ""
			}
		}
		return fmt.Sprintf("its conditions are %+v", out.Status.Conditions)
	})
	return out
}

// reregister deletes a Node and makes it anew, as a kubelet does that is
// restarted after an admin deleted the Node.
func (w *world) reregister(name string) *corev1.Node {
	w.t.Helper()
	w.must(w.Delete(w.t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	w.must(w.Create(w.t.Context(), node))
	return node
}

// agentReady says in the stead of the controller whether a node's agent serves.
func (w *world) agentReady(node string, status metav1.ConditionStatus) {
	w.t.Helper()
	offer := &v1alpha1.NodeNetwork{}
	w.must(w.Get(w.t.Context(), client.ObjectKey{Name: node}, offer))
	offer.Status.Conditions = []metav1.Condition{{
		Type: v1alpha1.ConditionAgentReady, Status: status, Reason: v1alpha1.ReasonAgentPodReady, LastTransitionTime: metav1.Now(),
	}}
	w.must(w.Status().Update(w.t.Context(), offer))
}

// blockOf is the block of the network with the CIDR of a lease; nil if there is none.
func (w *world) blockOf(lease ipam.Lease) *v1alpha1.IPBlock {
	w.t.Helper()
	var list v1alpha1.IPBlockList
	w.must(w.List(w.t.Context(), &list, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: lease.Network}))
	for i := range list.Items {
		if string(list.Items[i].Spec.CIDR) == lease.Block.String() {
			return &list.Items[i]
		}
	}
	return nil
}

// stays watches for several graces that the block of a lease is the node's.
func (w *world) stays(what string, lease ipam.Lease, node string) {
	w.t.Helper()
	for end := time.Now().Add(3 * grace); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if block := w.blockOf(lease); block == nil || block.Spec.NodeName != node {
			w.t.Fatalf("%s: the block %s of %s became %+v", what, lease.Block, lease.Address, block)
		}
	}
}

// kill deletes a pod's object at once; what kubelet would do about its sandbox
// does not happen.
func (w *world) kill(owners ...ipam.Owner) {
	w.t.Helper()
	for _, owner := range owners {
		w.must(client.IgnoreNotFound(w.Delete(w.t.Context(), podOf(owner), client.GracePeriodSeconds(0))))
	}
}
