// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipclaim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/ipclaims"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/ipblock"
)

// looker gathers the facts about claims. One worker uses it.
type looker struct {
	cache client.Reader
	ended *ended
	clock clock.PassiveClock
	grace time.Duration
	seen  map[string]sighting // by the claim's name
}

// sighting is since when a claim's former pod and its node have been seen as
// they are, and since when nobody has been seen to have or want the address. It
// lives in memory only: after a restart the controller watches for a whole
// grace again.
type sighting struct {
	uid, pod    types.UID
	what        surroundings
	quiet, idle time.Time
}

// surroundings are what must not change while an address is found to be free.
// The times are those of the last changes of readiness, so that one that came
// and went between two looks does not go unseen.
type surroundings struct {
	pod             PodState
	node            NodeState
	nodeUID         types.UID
	held            bool
	nodeAt, agentAt time.Time
}

// look gathers the facts about a claim. Pods, Nodes, NodeNetworks, Networks and
// Namespaces come from reader; those who wait for the address come from the
// cache.
func (l *looker) look(ctx context.Context, reader client.Reader, claim *v1alpha1.IPClaim) (*Facts, error) {
	f := &Facts{Claim: claim, Finalizer: controllerutil.ContainsFinalizer(claim, v1alpha1.FinalizerIPClaim), Grace: l.grace}
	what, err := l.surroundings(ctx, reader, f)
	if err != nil {
		return nil, err
	}
	f.Pod, f.Node, f.Held = what.pod, what.node, what.held
	if err := lookNetwork(ctx, reader, f); err != nil {
		return nil, err
	}
	if f.NamespaceGone, err = isGone(ctx, reader, &corev1.Namespace{}, client.ObjectKey{Name: claim.Spec.Owner.Namespace}); err != nil {
		return nil, err
	}
	if f.Pod != PodLives {
		if f.Next, err = l.next(ctx, claim); err != nil {
			return nil, err
		}
		if f.Elsewhere, err = l.elsewhere(ctx, f); err != nil {
			return nil, err
		}
	}
	f.QuietFor, f.IdleFor = l.sight(claim, what, f.Pod != PodLives && f.Next == nil)
	return f, nil
}

// sight notes what was seen, and tells for how long it has been so.
func (l *looker) sight(claim *v1alpha1.IPClaim, what surroundings, idle bool) (quietFor, idleFor time.Duration) {
	now := l.clock.Now()
	s := l.seen[claim.Name]
	if s.uid != claim.UID || s.pod != claim.Status.PodUID {
		s = sighting{uid: claim.UID, pod: claim.Status.PodUID, what: what, quiet: now, idle: now}
	}
	if s.what != what || what.held {
		s.what, s.quiet = what, now
	}
	if !idle {
		s.idle = now
	}
	l.seen[claim.Name] = s
	return now.Sub(s.quiet), now.Sub(s.idle)
}

// surroundings looks for the pod that has the address, and its node.
func (l *looker) surroundings(ctx context.Context, reader client.Reader, f *Facts) (surroundings, error) {
	var what surroundings
	status := &f.Claim.Status
	if status.PodUID == "" {
		return what, nil
	}
	var pod corev1.Pod
	err := reader.Get(ctx, client.ObjectKey{Namespace: f.Claim.Spec.Owner.Namespace, Name: status.PodName}, &pod)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return what, fmt.Errorf("reading pod %s/%s: %w", f.Claim.Spec.Owner.Namespace, status.PodName, err)
	case err == nil && pod.UID == status.PodUID && !endedByKubelet(&pod):
		f.PodNode = pod.Spec.NodeName
		what.pod = PodLives
	case err == nil && pod.UID == status.PodUID, l.ended.has(status.PodUID):
		what.pod = PodEnded
	default:
		what.pod = PodVanished
	}
	if status.NodeName == "" || what.pod == PodLives {
		return what, nil
	}
	return what, lookNode(ctx, reader, f.Claim, &what)
}

// lookNode tells whether the node of the former pod answers, and what its agent
// says.
func lookNode(ctx context.Context, reader client.Reader, claim *v1alpha1.IPClaim, what *surroundings) error {
	name := claim.Status.NodeName
	var offer v1alpha1.NodeNetwork
	if err := reader.Get(ctx, client.ObjectKey{Name: name}, &offer); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading NodeNetwork %q: %w", name, err)
	}
	what.held = slices.ContainsFunc(offer.Status.Held, func(h v1alpha1.HeldAddresses) bool {
		return h.Fixed && h.Network == claim.Spec.Network && h.PodUID == claim.Status.PodUID && h.Count > 0
	})
	var node corev1.Node
	gone, err := isGone(ctx, reader, &node, client.ObjectKey{Name: name})
	if err != nil || gone {
		what.node = NodeGone
		return err
	}
	what.nodeUID = node.UID
	nodeReady, nodeAt := readiness(&node)
	agent := meta.FindStatusCondition(offer.Status.Conditions, v1alpha1.ConditionAgentReady)
	switch {
	case ipblock.Fenced(&node):
		what.node = NodeFenced
	case nodeReady && agent != nil && agent.Status == "True":
		what.node, what.nodeAt, what.agentAt = NodeServes, nodeAt, agent.LastTransitionTime.Time
	default:
		what.node = NodeSilent
	}
	return nil
}

func readiness(node *corev1.Node) (ready bool, since time.Time) {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue, c.LastTransitionTime.Time
		}
	}
	return false, time.Time{}
}

// lookNetwork tells what has become of the claim's Network, and whether it has
// the address to give.
func lookNetwork(ctx context.Context, reader client.Reader, f *Facts) error {
	var network v1alpha1.Network
	gone, err := isGone(ctx, reader, &network, client.ObjectKey{Name: f.Claim.Spec.Network})
	switch {
	case err != nil:
		return err
	case gone || !ipclaims.Of(f.Claim, &network):
		f.Network = NetworkAbsent
		return nil
	case !network.DeletionTimestamp.IsZero():
		f.Network = NetworkTerminating
		return nil
	}
	if err := checkAddress(&network, string(f.Claim.Spec.Address)); err != nil {
		f.Invalid = err.Error()
	}
	return nil
}

// checkAddress says why no pod of the network may have the address.
func checkAddress(network *v1alpha1.Network, text string) error {
	plan, err := addressing.NewPlan(network.Name, &network.Spec)
	if errors.Is(err, addressing.ErrNoSubnet) {
		return fmt.Errorf("network %q has no subnet", network.Name)
	}
	if err != nil {
		return fmt.Errorf("network %q: %w", network.Name, err)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return fmt.Errorf("%q is no IP address", text)
	}
	return plan.CheckFixed(addr)
}

func isGone(ctx context.Context, reader client.Reader, into client.Object, key client.ObjectKey) (bool, error) {
	err := reader.Get(ctx, key, into)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("reading %T %s: %w", into, key, err)
	}
	return apierrors.IsNotFound(err), nil
}

// next is the pod that is to have the address: of those that wait for this very
// claim the oldest; those of one second go by name.
func (l *looker) next(ctx context.Context, claim *v1alpha1.IPClaim) (*corev1.Pod, error) {
	key := ipclaims.Key(claim.Spec.Network, claim.Spec.Owner)
	var pods corev1.PodList
	if err := l.cache.List(ctx, &pods, client.MatchingFields{indexPodOwner: key}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing the pods of an owner: %w", err)
	}
	if len(pods.Items) == 0 {
		return nil, nil
	}
	siblings, err := claimsOf(ctx, l.cache, claim.Spec.Network, claim.Spec.Owner)
	if err != nil {
		return nil, err
	}
	siblings = slices.DeleteFunc(siblings, func(s *v1alpha1.IPClaim) bool {
		return s.Spec.NetworkUID != "" && claim.Spec.NetworkUID != "" && s.Spec.NetworkUID != claim.Spec.NetworkUID
	})
	var best *corev1.Pod
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.UID != claim.Status.PodUID && stays(pod) && waitsFor(pod, claim, siblings) && (best == nil || precedes(pod, best)) {
			best = pod
		}
	}
	return best, nil
}

// elsewhere is a node, by the cache, that holds the address for a pod that is
// gone. What the node of the claim's own pod holds for it is surroundings'.
func (l *looker) elsewhere(ctx context.Context, f *Facts) (string, error) {
	var offers v1alpha1.NodeNetworkList
	if err := l.cache.List(ctx, &offers, client.MatchingFields{indexNodeHeld: f.Claim.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return "", fmt.Errorf("listing the nodes that hold an address: %w", err)
	}
	for i := range offers.Items {
		if !holdsElsewhere(f, &offers.Items[i]) {
			continue
		}
		name := offers.Items[i].Name
		var node corev1.Node
		gone, err := isGone(ctx, l.cache, &node, client.ObjectKey{Name: name})
		if err != nil {
			return "", err
		}
		if !gone && !ipblock.Fenced(&node) {
			return name, nil
		}
	}
	return "", nil
}

func holdsElsewhere(f *Facts, offer *v1alpha1.NodeNetwork) bool {
	status := &f.Claim.Status
	return slices.ContainsFunc(offer.Status.Held, func(h v1alpha1.HeldAddresses) bool {
		known := offer.Name == status.NodeName && h.PodUID == status.PodUID
		return heldClaim(&h) == f.Claim.Name && !known && (f.Next == nil || h.PodUID != f.Next.UID)
	})
}

// heldClaim is the name of the IPClaim of a fixed address that a node holds for
// a pod that is gone; empty if the entry is of anything else.
func heldClaim(h *v1alpha1.HeldAddresses) string {
	addr, err := netip.ParseAddr(h.Address)
	if err != nil || !h.Fixed || h.PodUID == "" || h.Count == 0 {
		return ""
	}
	return addressing.ClaimName(h.Network, addr)
}

// waitsFor tells whether the pod has none of the claims that answer one of its
// requests, and is to have this one.
func waitsFor(pod *corev1.Pod, claim *v1alpha1.IPClaim, siblings []*v1alpha1.IPClaim) bool {
	requests := fixedRequests(pod)
	for i := range requests {
		request := &requests[i]
		chosen := ipclaims.Choose(siblings, ipclaims.Owner(pod.Namespace, pod.Name, request), request)
		if chosen == nil || chosen.Name != claim.Name {
			continue
		}
		has := func(s *v1alpha1.IPClaim) bool {
			return ipclaims.Holds(s, pod.Namespace, pod.Name, pod.UID, request)
		}
		if !slices.ContainsFunc(siblings, has) {
			return true
		}
	}
	return false
}

func precedes(a, b *corev1.Pod) bool {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name)) < 0
}

// claimsOf lists the claims of an owner on a network. They belong to the cache
// and are read only.
func claimsOf(ctx context.Context, reader client.Reader, network string, owner v1alpha1.IPClaimOwner) ([]*v1alpha1.IPClaim, error) {
	var list v1alpha1.IPClaimList
	err := reader.List(ctx, &list, client.MatchingFields{indexClaimOwner: ipclaims.Key(network, owner)}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("listing the IPClaims of an owner: %w", err)
	}
	out := make([]*v1alpha1.IPClaim, len(list.Items))
	for i := range list.Items {
		out[i] = &list.Items[i]
	}
	return out, nil
}
