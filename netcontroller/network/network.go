// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package network keeps the status and the finalizer of Networks and the
// status of PhysicalNetworks. It is their only writer.
//
// What a status should be is decided by pure functions over values (readiness.go,
// usage.go, physical.go); the reconcilers read the caches, call them, and write
// once per sync, if at all. Conditions change at once; counters are written at
// most once in an interval, because every node agent watches Networks.
package network

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/netplane/netplane/api/v1alpha1"
)

// DefaultCounterInterval is the least time between two writes of one object's
// counters.
const DefaultCounterInterval = 30 * time.Second

// Waits that gather bursts of events into one sync. Blocks decide the
// condition Tight, so theirs is short; pods move counters and the finalizer.
const (
	gatherBlocks = 100 * time.Millisecond
	gatherPods   = time.Second
)

// Options of both controllers; zero values mean the defaults.
type Options struct {
	// CounterInterval is the least time between two writes of counters.
	CounterInterval time.Duration
	// Clock tells the time of transitions.
	Clock clock.PassiveClock
	// Registerer takes the metrics.
	Registerer prometheus.Registerer
}

func (o Options) withDefaults() Options {
	if o.CounterInterval == 0 {
		o.CounterInterval = DefaultCounterInterval
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Registerer == nil {
		o.Registerer = metrics.Registry
	}
	return o
}

// Setup registers the Network and the PhysicalNetwork controller with mgr.
func Setup(mgr ctrl.Manager, opts Options) error {
	opts = opts.withDefaults()
	if err := setupIndexes(mgr.GetFieldIndexer()); err != nil {
		return err
	}
	gauges, err := newGauges(opts.Registerer)
	if err != nil {
		return err
	}
	if err := setupNetworks(mgr, opts, gauges); err != nil {
		return fmt.Errorf("setting up the Network controller: %w", err)
	}
	if err := setupPhysical(mgr, opts, gauges); err != nil {
		return fmt.Errorf("setting up the PhysicalNetwork controller: %w", err)
	}
	return nil
}

func setupNetworks(mgr ctrl.Manager, opts Options, gauges *gauges) error {
	r := &reconciler{
		client:   mgr.GetClient(),
		live:     mgr.GetAPIReader(),
		recorder: mgr.GetEventRecorder(v1alpha1.FieldOwnerController),
		gauges:   gauges,
		pace:     newPace(opts),
	}
	toSiblings := &siblings{reader: mgr.GetClient()}
	return ctrl.NewControllerManagedBy(mgr).
		Named("network").
		For(&v1alpha1.Network{}).
		Watches(&v1alpha1.Network{}, enqueue(0, toSiblings.ofNetwork), builder.WithPredicates(specChanged())).
		Watches(&v1alpha1.PhysicalNetwork{}, enqueue(0, toSiblings.ofPhysicalNetwork), builder.WithPredicates(cameOrWent())).
		Watches(&v1alpha1.NodeNetwork{}, enqueue(0, toSiblings.ofNodeNetwork), builder.WithPredicates(backingChanged())).
		Watches(&v1alpha1.NodeNetwork{}, enqueue(gatherPods, heldNetworks), builder.WithPredicates(heldChanged())).
		Watches(&v1alpha1.IPBlock{}, enqueue(gatherBlocks, blockNetwork)).
		Watches(&v1alpha1.IPClaim{}, enqueue(gatherPods, claimNetwork), builder.WithPredicates(cameOrWent())).
		Watches(&corev1.Pod{}, enqueue(gatherPods, podNetworks), builder.WithPredicates(demandChanged())).
		Complete(r)
}

func setupPhysical(mgr ctrl.Manager, opts Options, gauges *gauges) error {
	r := &physicalReconciler{
		client:   mgr.GetClient(),
		recorder: mgr.GetEventRecorder(v1alpha1.FieldOwnerController),
		gauges:   gauges,
		pace:     newPace(opts),
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("physicalnetwork").
		For(&v1alpha1.PhysicalNetwork{}).
		Watches(&v1alpha1.NodeNetwork{}, enqueue(0, mappedPhysicalNetworks), builder.WithPredicates(backingChanged())).
		Complete(r)
}
