// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipclaim

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/ipclaims"
	"github.com/netplane/netplane/api/v1alpha1"
)

// vacateAfter is how long a claim goes on naming a pod that is gone for good. A
// pod of a StatefulSet is made anew within it, so that it costs no write.
const vacateAfter = 10 * time.Second

// NetworkState is what has become of the Network that a claim names.
type NetworkState int

// States of a claim's Network.
const (
	// NetworkServes: it is there, and the one that the claim is for.
	NetworkServes NetworkState = iota
	// NetworkTerminating: it is being deleted.
	NetworkTerminating
	// NetworkAbsent: there is none, or a later one of the same name.
	NetworkAbsent
)

// PodState is what has become of the pod that a claim is handed to.
type PodState int

// States of a claim's pod.
const (
	// PodNone: the claim is handed to no pod.
	PodNone PodState = iota
	// PodLives: the pod object is there, and kubelet has not said that it ended.
	PodLives
	// PodEnded: kubelet has said that the pod ended: before, it took its sandbox
	// down, and with it the address.
	PodEnded
	// PodVanished: the pod object is gone, and kubelet has not been heard to say
	// that it ended: it was deleted by force, or while nobody watched.
	PodVanished
)

// NodeState is what is known of the node that the claim's pod was bound to.
type NodeState int

// States of a claim's node.
const (
	// NodeNone: none is noted, so that no agent ever served the address.
	NodeNone NodeState = iota
	// NodeServes: the Node is Ready, and so is its agent.
	NodeServes
	// NodeSilent: the Node is there, but it or its agent is not ready.
	NodeSilent
	// NodeFenced: an admin has vouched that nothing runs there.
	NodeFenced
	// NodeGone: there is no Node of the name.
	NodeGone
)

// Facts is all that decides what becomes of a claim.
type Facts struct {
	Claim *v1alpha1.IPClaim
	// Finalizer: the claim is held by ours. It is put on before the claim is
	// handed to its first pod, or when the controller makes the claim.
	Finalizer bool
	Network   NetworkState
	// Invalid says why no pod of the Network may have the address.
	Invalid string
	// NamespaceGone: the namespace of the owner's pods is not there.
	NamespaceGone bool

	Pod PodState
	// PodNode is the node that a living pod is bound to.
	PodNode string
	Node    NodeState
	// Held: the node's agent says that the address is not given back.
	Held bool
	// Elsewhere is a node whose agent says that a pod has the address which is
	// gone, and which is not the one that the claim names; empty if there is none.
	Elsewhere string
	// QuietFor is how long pod and node have been seen in the present states,
	// with nothing held.
	QuietFor time.Duration
	Grace    time.Duration

	// Next is the pod that is to have the address after the one that has it.
	Next *corev1.Pod
	// IdleFor is how long nobody has been seen to have or to want the address.
	IdleFor time.Duration
}

// Action is what the controller does about a claim.
type Action int

// Actions.
const (
	// Keep: nothing is to be done.
	Keep Action = iota
	// Hold puts the finalizer on.
	Hold
	// Hand makes the address the next pod's.
	Hand
	// Note writes down to which node the pod was bound.
	Note
	// Report writes the condition.
	Report
	// Vacate writes the condition, and that no pod may use the address.
	Vacate
	// Delete deletes the claim, so that anybody may have the address.
	Delete
	// Release takes the finalizer off a claim that is being deleted.
	Release
)

// Decision is what to do about a claim, and when to look again: zero means that
// an event will tell. Condition is for Hand, Report and Vacate.
type Decision struct {
	Action    Action
	Condition metav1.Condition
	Wait      time.Duration
}

// Decide tells what to do about a claim.
func Decide(f *Facts) Decision {
	remains := f.remains()
	switch {
	case f.Pod == PodLives && f.PodNode != "" && f.Claim.Status.NodeName == "":
		return Decision{Action: Note}
	case f.Pod == PodLives:
		return Decision{}
	case remains.reason != "" && (f.Next != nil || f.deleted()):
		return f.report(Report, metav1.ConditionFalse, remains.reason, remains.message, remains.wait)
	case remains.reason != "":
		return Decision{Wait: remains.wait}
	case f.deleted() && f.Finalizer:
		return Decision{Action: Release}
	case f.deleted():
		return Decision{}
	}
	return f.decideFree()
}

func (f *Facts) deleted() bool { return !f.Claim.DeletionTimestamp.IsZero() }

// decideFree is Decide for an address that nothing uses.
func (f *Facts) decideFree() Decision {
	spec := &f.Claim.Spec
	// What an admin has reserved, and no pod has used, stays: Network and
	// namespace may come later.
	used := f.Finalizer
	switch {
	case f.Network != NetworkServes && (used || spec.NetworkUID != ""), used && f.NamespaceGone:
		return Decision{Action: Delete}
	case f.Network != NetworkServes:
		return f.report(Vacate, metav1.ConditionFalse, v1alpha1.ReasonNetworkAbsent,
			fmt.Sprintf("there is no Network %q, or it is being deleted", spec.Network), 0)
	case f.Next == nil && used && spec.ReclaimPolicy == v1alpha1.IPClaimDelete:
		return Decision{Action: Delete}
	case f.Invalid != "":
		return f.report(Vacate, metav1.ConditionFalse, v1alpha1.ReasonInvalidAddress, f.Invalid, 0)
	case f.Next != nil && !f.Finalizer:
		return Decision{Action: Hold}
	case f.Next != nil:
		return f.report(Hand, metav1.ConditionTrue, v1alpha1.ReasonBound,
			fmt.Sprintf("pod %s/%s may use the address", f.Next.Namespace, f.Next.Name), 0)
	case f.Pod != PodNone && f.IdleFor < vacateAfter:
		return Decision{Wait: vacateAfter - f.IdleFor}
	}
	return f.report(Vacate, metav1.ConditionFalse, v1alpha1.ReasonOwnerAbsent,
		fmt.Sprintf("%s is not there: the address is kept for it", ipclaims.Describe(spec.Owner)), 0)
}

// remains says why the address may still be in use although its pod does not
// live; the reason is empty if it is free.
type remains struct {
	reason, message string
	wait            time.Duration
}

// remains decides when an address leaves its pod. It is free
//   - if no node was noted: agents serve only what their node is noted in;
//   - if kubelet said that the pod ended, or an admin has fenced the node;
//   - if the pod just vanished, when Node and agent have been ready for a whole
//     grace since, and the agent has not said that it holds the address: within
//     that time a node that is cut off turns up as not Ready, and an agent that
//     is not learns of the deletion, and tells of what its sandbox holds;
//   - or when the Node has been gone for as long.
//
// What the agent of a living node says that it holds is never free. That holds
// also of a pod that the claim does not know: an API server that was restored from a
// backup may have forgotten the pod, and the claim with it.
func (f *Facts) remains() (r remains) {
	status := &f.Claim.Status
	former := fmt.Sprintf("former pod %s/%s", f.Claim.Spec.Owner.Namespace, status.PodName)
	wait := max(0, f.Grace-f.QuietFor)
	switch {
	case f.Elsewhere != "":
		r.message = fmt.Sprintf("node %s has not given back the address, which a pod has there that is gone from the API", f.Elsewhere)
		return remains{v1alpha1.ReasonFormerPodRemains, r.message, 0}
	case f.Pod == PodNone || f.Node == NodeNone || f.Node == NodeFenced:
		return r
	case f.Pod == PodEnded && !f.Held:
		return r
	case f.Held && f.Node != NodeSilent:
		r.message = fmt.Sprintf("node %s has not given back what %s had", status.NodeName, former)
		return remains{v1alpha1.ReasonFormerPodRemains, r.message, 0}
	case f.Node == NodeSilent:
		r.message = fmt.Sprintf("node %s, where %s ran, does not answer: repair the node, delete it, or fence it with the taint %s", status.NodeName, former, corev1.TaintNodeOutOfService)
		return remains{v1alpha1.ReasonFormerNodeUnknown, r.message, 0}
	case wait == 0:
		return r
	case f.Node == NodeGone:
		r.message = fmt.Sprintf("node %s, where %s ran, is gone: it gets %s to stop", status.NodeName, former, f.Grace)
		return remains{v1alpha1.ReasonFormerNodeUnknown, r.message, wait}
	}
	r.message = fmt.Sprintf("%s was deleted before node %s said that it had ended: the node gets %s to tell", former, status.NodeName, f.Grace)
	return remains{v1alpha1.ReasonFormerPodRemains, r.message, wait}
}

// report is a decision to write a condition, or to keep what says the same
// already.
func (f *Facts) report(action Action, status metav1.ConditionStatus, reason, message string, wait time.Duration) Decision {
	condition := metav1.Condition{Type: v1alpha1.ConditionBound, Status: status, Reason: reason, Message: message, ObservedGeneration: f.Claim.Generation}
	decision := Decision{Action: action, Condition: condition, Wait: wait}
	if action == Hand || action == Vacate && f.Pod != PodNone {
		return decision
	}
	for _, have := range f.Claim.Status.Conditions {
		if have.Type == condition.Type && have.Status == status && have.Reason == reason && have.Message == message {
			decision.Action = Keep
		}
	}
	return decision
}
