// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipblock

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// claimLag bounds how long an agent may go on giving out addresses of a block
// that was deleted, or is a former Node's: until its watch tells it.
const claimLag = time.Minute

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
	// GoneFor is how long NodeGone has been seen.
	GoneFor time.Duration
	// QuietFor is how long NodeGone has been seen and nothing that could
	// still use an address of the block.
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
// in this sense, but its machine may run on with the old pods, so that neither
// a Node's absence nor its return frees an address while a pod object stands
// that may have it.
func Decide(f Facts) (Action, time.Duration) {
	switch {
	case !f.NodeGone && f.Network != NetworkServes && !f.Deleted:
		return Delete, 0
	case !f.NodeGone:
		return Keep, 0
	case f.GoneFor < f.Grace:
		return Keep, f.Grace - f.GoneFor
	case !f.Deleted:
		return Delete, 0
	case !f.Finalizer:
		return Keep, 0
	case f.QuietFor < f.Grace:
		return Keep, f.Grace - f.QuietFor
	}
	return Release, 0
}

// InUse tells whether a pod, or an address that the node's agent holds back,
// may still have an address of the block. pods are the living pods of the
// block's network; successor is when a Node of the same name registered anew,
// zero if there is none. Pods that came well after that, or after the block was
// deleted, have none of its addresses.
func InUse(block *v1alpha1.IPBlock, pods []corev1.Pod, nodeNetwork *v1alpha1.NodeNetwork, successor time.Time) bool {
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
	if nodeNetwork == nil {
		return false
	}
	for _, held := range nodeNetwork.Status.Held {
		if held.Network == block.Spec.Network && held.Count > 0 && !held.Fixed {
			return true
		}
	}
	return false
}
