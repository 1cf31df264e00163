// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipblock

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/netplane/netplane/api/v1alpha1"
)

// claimLag bounds how long an agent may go on giving out addresses of a block
// that was deleted, or is a former Node's: until its watch tells it.
const claimLag = time.Minute

// lookAgain is the wait while pods stand on a fenced node: that they go is no
// event for a block.
const lookAgain = 5 * time.Second

// NetworkState is what has become of the Network that a block names.
type NetworkState int

// States of a block's Network.
const (
	// NetworkServes: it is there, with the UID that the block names.
	NetworkServes NetworkState = iota
	// NetworkTerminating: it is being deleted and no pod lives on it any more.
	NetworkTerminating
	// NetworkUnknown: there is none, or a later one of the same name.
	NetworkUnknown
)

// Facts is all that decides what becomes of a block.
type Facts struct {
	// Deleted: the block has a deletionTimestamp.
	Deleted bool
	// Finalizer: the block is held by ours.
	Finalizer bool
	Network   NetworkState
	// NodeGone: no Node has the name and the UID that the block names.
	NodeGone bool
	// Fenced: the Node is there, and Fenced says of it that nothing runs there.
	Fenced bool
	// InUse: a pod or the node's agent may still use an address of the block.
	InUse bool
	// QuietFor is how long NodeGone has been seen, and InUse has not.
	QuietFor time.Duration
	Grace    time.Duration
}

// Action is what the controller does about a block.
type Action int

// Actions.
const (
	// Keep: nothing is to be done.
	Keep Action = iota
	// Delete asks for the block back: its agent empties it.
	Delete
	// Release takes the finalizer off, in the stead of an agent that is gone.
	Release
)

// Decide tells what to do about a block, and after which time to look again;
// zero means that an event will tell.
//
// A living node's block is only ever deleted: its agent alone knows when the
// last address in it is free. A node that registered anew (another UID) is gone
// in this sense until its agent adopts the block, because its machine may run on
// with the old pods: neither a Node's absence nor its return frees an address
// while a pod object stands that may have it. See
// docs/design/0004-nodes-that-go.md.
func Decide(f Facts) (Action, time.Duration) {
	switch {
	case f.NodeGone || f.Fenced:
		return decideGone(f)
	case f.Network != NetworkServes && !f.Deleted:
		return Delete, 0
	}
	return Keep, 0
}

// decideGone is Decide for nodes without an agent.
func decideGone(f Facts) (Action, time.Duration) {
	wait := f.Grace - f.QuietFor
	switch {
	case f.Deleted && !f.Finalizer:
		return Keep, 0
	case f.InUse && f.Fenced:
		return Keep, lookAgain
	case f.InUse:
		return Keep, wait
	case !f.Fenced && wait > 0:
		return Keep, wait
	case !f.Deleted:
		return Delete, 0
	}
	return Release, 0
}

// Fenced tells whether an admin has vouched that nothing runs on the node: it is
// not Ready and bears the taint node.kubernetes.io/out-of-service, by which
// Kubernetes, too, takes its pods and volumes for free (KEP-2268).
func Fenced(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return false
		}
	}
	return slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// InUse tells whether a pod, or an address that the node's agent holds back,
// may still have an address of the block. pods are the living pods of the
// block's network; successor is when a Node of the same name registered anew,
// zero if there is none. Pods that came well after that, or after the block was
// deleted, have none of its addresses. The successor's agent must be ready: it
// has read by then which addresses are in use, and adopts their blocks.
// A block in which another node's pods live is in use in any case.
func InUse(block *v1alpha1.IPBlock, pods []corev1.Pod, nodeNetwork *v1alpha1.NodeNetwork, successor time.Time) bool {
	if block.Annotations[v1alpha1.AnnotationContestedBy] != "" {
		return true
	}
	closed := successor
	if at := block.DeletionTimestamp; !at.IsZero() && (closed.IsZero() || at.Time.Before(closed)) {
		closed = at.Time
	}
	for i := range pods {
		pod := &pods[i]
		if pod.Spec.NodeName == block.Spec.NodeName && (closed.IsZero() || pod.CreationTimestamp.Time.Before(closed.Add(claimLag))) {
			return true
		}
	}
	if !successor.IsZero() && (nodeNetwork == nil || !meta.IsStatusConditionTrue(nodeNetwork.Status.Conditions, v1alpha1.ConditionAgentReady)) {
		return true
	}
	if nodeNetwork == nil {
		return false
	}
	for _, held := range nodeNetwork.Status.Held {
		if held.Network == block.Spec.Network && held.Count > 0 && !held.Fixed && !held.Quarantined {
			return true
		}
	}
	return false
}
