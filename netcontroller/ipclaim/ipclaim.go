// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ipclaim gives pods their fixed addresses: it makes an IPClaim for a
// pod that asks for one, hands the address to one pod at a time, and takes it
// back when that pod and its sandbox are gone for good. It is the only writer
// of IPClaim.status and of the claims' finalizer.
//
// Two controllers share the work. That of pods makes claims (provide.go). That
// of claims decides on each by pure functions over values (decide.go), on what
// it gathers from the caches (look.go), and takes one step at a time; what
// cannot be undone is decided anew on what the API server itself says.
package ipclaim

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/netplane/netplane/api/ipclaims"
	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/ipblock"
)

// Names of the cache's indexes, this controller's own.
const (
	indexPodOwner       = "ipclaim.podOwner"
	indexClaimOwner     = "ipclaim.owner"
	indexClaimNetwork   = "ipclaim.network"
	indexClaimNamespace = "ipclaim.namespace"
	indexClaimNode      = "ipclaim.node"
	indexClaimPod       = "ipclaim.pod"
	indexNodeHeld       = "ipclaim.nodeHeld"
)

// Options of the controllers; zero values mean the defaults.
type Options struct {
	// Grace is how long a node gets to tell of a pod that vanished, and a Node
	// that is gone to stop. It must be longer than kube-controller-manager's
	// --node-monitor-grace-period, or a node that is cut off may not turn up as
	// not Ready within it.
	Grace time.Duration
	// Clock tells for how long something has been seen.
	Clock clock.PassiveClock
	// Registerer takes the metrics.
	Registerer prometheus.Registerer
}

// Setup registers the controllers with mgr.
func Setup(mgr ctrl.Manager, opts Options) error {
	if opts.Grace == 0 {
		opts.Grace = ipblock.DefaultGrace
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if opts.Registerer == nil {
		opts.Registerer = metrics.Registry
	}
	if err := opts.Registerer.Register(newCollector(mgr.GetClient())); err != nil {
		return fmt.Errorf("registering the metrics of IPClaims: %w", err)
	}
	if err := addIndexes(mgr.GetFieldIndexer()); err != nil {
		return err
	}
	ended, wanting := newEnded(opts.Clock), newWanting()
	if err := setupClaims(mgr, opts, ended); err != nil {
		return fmt.Errorf("setting up the IPClaim controller: %w", err)
	}
	if err := setupPods(mgr, wanting); err != nil {
		return fmt.Errorf("setting up the controller of pods with fixed addresses: %w", err)
	}
	return nil
}

func setupClaims(mgr ctrl.Manager, opts Options, ended *ended) error {
	r := &claimReconciler{
		looker:  looker{cache: mgr.GetClient(), ended: ended, clock: opts.Clock, grace: opts.Grace, seen: map[string]sighting{}},
		client:  mgr.GetClient(),
		live:    mgr.GetAPIReader(),
		pending: map[string]string{},
	}
	w := &watcher{reader: mgr.GetClient(), ended: ended}
	return ctrl.NewControllerManagedBy(mgr).
		Named("ipclaim").
		For(&v1alpha1.IPClaim{}).
		Watches(&v1alpha1.IPClaim{}, w.siblings(), builder.WithPredicates(wentOrGoes())).
		Watches(&corev1.Pod{}, w.pods()).
		Watches(&corev1.Node{}, w.claimsBy(indexClaimNode), builder.WithPredicates(nodeAnswers())).
		Watches(&v1alpha1.NodeNetwork{}, w.claimsOfOffer(), builder.WithPredicates(agentAnswers())).
		Watches(&v1alpha1.Network{}, w.claimsBy(indexClaimNetwork), builder.WithPredicates(specChanged())).
		Watches(&corev1.Namespace{}, w.claimsBy(indexClaimNamespace), builder.WithPredicates(cameOrWent())).
		Complete(r)
}

func setupPods(mgr ctrl.Manager, wanting *wanting) error {
	r := &podReconciler{
		client:   mgr.GetClient(),
		live:     mgr.GetAPIReader(),
		recorder: mgr.GetEventRecorder(v1alpha1.FieldOwnerController),
		wanting:  wanting,
	}
	w := &watcher{reader: mgr.GetClient()}
	return ctrl.NewControllerManagedBy(mgr).
		Named("ipclaim-pod").
		For(&corev1.Pod{}, builder.WithPredicates(asksAnew())).
		Watches(&v1alpha1.IPClaim{}, w.withoutClaim(wanting), builder.WithPredicates(went())).
		Watches(&v1alpha1.Network{}, wanting.all(), builder.WithPredicates(usableChanged())).
		Watches(&corev1.Namespace{}, wanting.all(), builder.WithPredicates(labelsChanged())).
		Complete(r)
}

func addIndexes(indexer client.FieldIndexer) error {
	ctx := context.Background() // registers only: nothing is read before the caches start
	err := indexer.IndexField(ctx, &corev1.Pod{}, indexPodOwner, func(object client.Object) []string {
		pod, ok := object.(*corev1.Pod)
		if !ok {
			return nil
		}
		return ownerKeys(pod)
	})
	if err != nil {
		return fmt.Errorf("making the cache index %s: %w", indexPodOwner, err)
	}
	err = indexer.IndexField(ctx, &v1alpha1.NodeNetwork{}, indexNodeHeld, heldClaims)
	if err != nil {
		return fmt.Errorf("making the cache index %s: %w", indexNodeHeld, err)
	}
	for name, key := range map[string]func(*v1alpha1.IPClaim) string{
		indexClaimOwner:     func(c *v1alpha1.IPClaim) string { return ipclaims.Key(c.Spec.Network, c.Spec.Owner) },
		indexClaimNetwork:   func(c *v1alpha1.IPClaim) string { return c.Spec.Network },
		indexClaimNamespace: func(c *v1alpha1.IPClaim) string { return c.Spec.Owner.Namespace },
		indexClaimNode:      func(c *v1alpha1.IPClaim) string { return c.Status.NodeName },
		indexClaimPod:       func(c *v1alpha1.IPClaim) string { return string(c.Status.PodUID) },
	} {
		err := indexer.IndexField(ctx, &v1alpha1.IPClaim{}, name, func(object client.Object) []string {
			claim, ok := object.(*v1alpha1.IPClaim)
			if !ok || key(claim) == "" {
				return nil
			}
			return []string{key(claim)}
		})
		if err != nil {
			return fmt.Errorf("making the cache index %s: %w", name, err)
		}
	}
	return nil
}

// fixedRequests are a pod's requests for fixed addresses; none if its
// annotation cannot be read: scheduler and agent say why.
func fixedRequests(pod *corev1.Pod) []podnetworks.Request {
	text, asks := pod.Annotations[v1alpha1.AnnotationNetworks]
	if !asks || pod.Spec.HostNetwork {
		return nil
	}
	requests, err := podnetworks.Parse(text)
	if err != nil {
		return nil
	}
	var fixed []podnetworks.Request
	for i := range requests {
		if requests[i].Fixed() {
			fixed = append(fixed, requests[i])
		}
	}
	return fixed
}

// ownerKeys are the identities on networks that a pod's fixed addresses belong to.
func ownerKeys(pod *corev1.Pod) []string {
	requests := fixedRequests(pod)
	keys := make([]string, 0, len(requests))
	for i := range requests {
		keys = append(keys, ipclaims.Key(requests[i].Name, ipclaims.Owner(pod.Namespace, pod.Name, &requests[i])))
	}
	return keys
}

// stays tells whether a pod will use what it asks for.
func stays(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp.IsZero() && !finished(pod)
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// podGC is the reason by which kube-controller-manager's pod garbage collector
// tells that it, and not kubelet, has declared a pod Failed
// (k8s.io/kubernetes pkg/controller/podgc/gc_controller.go).
const podGC = "DeletionByPodGC"

// endedByKubelet tells whether kubelet said that the pod ended. It does not
// before it has taken the sandbox down (k8s.io/kubernetes
// pkg/kubelet/status/status_manager.go, mergePodStatus).
func endedByKubelet(pod *corev1.Pod) bool {
	if !finished(pod) {
		return false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == podGC {
			return false
		}
	}
	return true
}
