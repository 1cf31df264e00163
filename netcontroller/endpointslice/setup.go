// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package endpointslice publishes the endpoints of Services that name
// networks: one group of EndpointSlices per Service, network and family, with
// the addresses that the selected pods have on that network.
//
// What goes into which slice is decided by pure functions (publish); the
// slices themselves are written by k8s.io/endpointslice, the library of
// kube-controller-manager's own controller, which is given a shadow of the
// Service and of its pods per network. kube-controller-manager keeps away
// because the Service's selector has an entry that no pod has.
package endpointslice

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	"k8s.io/endpointslice"
	sliceutil "k8s.io/endpointslice/util"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/netplane/netplane/api/v1alpha1"
)

// controllerName names the controller in logs, metrics and events.
const controllerName = "netplane-endpointslice"

// Defaults of Options.
const (
	// DefaultBatchPeriod is short enough that a pod's change of readiness is
	// published within a second, whatever went before.
	DefaultBatchPeriod = 500 * time.Millisecond
	// DefaultMaxEndpointsPerSlice is kube-controller-manager's.
	DefaultMaxEndpointsPerSlice = 100
	// DefaultWorkers is the number of Services worked on at a time.
	DefaultWorkers = 4
)

// Options of the controller; zero values mean the defaults.
type Options struct {
	// BatchPeriod is how long after the last time a Service's slices are not
	// written for changes of pods, blocks and networks; those are gathered.
	BatchPeriod time.Duration
	// MaxEndpointsPerSlice is the most endpoints that one slice gets.
	MaxEndpointsPerSlice int32
	// Workers is how many Services are worked on at a time.
	Workers int
	// TakeOverPeriod is how long slices stand beside those of Kubernetes itself
	// while the selector lacks our key.
	TakeOverPeriod time.Duration
	// Clock is for tests.
	Clock clock.PassiveClock
}

func (o *Options) complete() {
	if o.BatchPeriod == 0 {
		o.BatchPeriod = DefaultBatchPeriod
	}
	if o.MaxEndpointsPerSlice == 0 {
		o.MaxEndpointsPerSlice = DefaultMaxEndpointsPerSlice
	}
	if o.Workers == 0 {
		o.Workers = DefaultWorkers
	}
	if o.TakeOverPeriod == 0 {
		o.TakeOverPeriod = DefaultTakeOverPeriod
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
}

// +kubebuilder:rbac:groups="",resources=pods;nodes,verbs=get;list;watch
// Children alone are written, which the policy netplane-child-services holds to.
// +kubebuilder:rbac:groups="",resources=services,verbs=get;list;watch;create;update;delete
// +kubebuilder:rbac:groups="",resources=services/status,verbs=patch
// The owner references of slices block the Service's deletion, which the
// admission plugin OwnerReferencesPermissionEnforcement guards.
// +kubebuilder:rbac:groups="",resources=services/finalizers,verbs=update
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=get;list;watch;create;update;delete
// +kubebuilder:rbac:groups=netplane.io,resources=networks;nodenetworks;ipblocks;ipclaims,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Setup adds the controller to the manager. The manager's cache must hold
// Services, Pods, Nodes, Networks, NodeNetworks, IPBlocks, IPClaims and the
// EndpointSlices labelled managed-by netplane.io, of all namespaces; pods with
// their annotations, labels, node, host name, ports and status.
func Setup(mgr ctrl.Manager, opts Options) error {
	opts.complete()
	if err := addIndexes(context.Background(), mgr.GetFieldIndexer()); err != nil {
		return err
	}
	// The library wants client-go's own client; it shares the manager's connections.
	clients, err := kubernetes.NewForConfigAndClient(mgr.GetConfig(), mgr.GetHTTPClient())
	if err != nil {
		return fmt.Errorf("making the client for slices: %w", err)
	}
	paced := newPace(opts.Clock, opts.BatchPeriod)
	tracker := sliceutil.NewEndpointSliceTracker()
	r := &reconciler{
		client:  mgr.GetClient(),
		live:    mgr.GetAPIReader(),
		events:  mgr.GetEventRecorder(controllerName),
		tracker: tracker,
		trigger: sliceutil.NewTriggerTimeTracker(),
		// One for all networks: only its metrics, which are not registered,
		// tell Services apart by name. Without a topology cache it records no
		// events, so the recorder may be one that drops them.
		slices: endpointslice.NewReconciler(clients, nodeLister{mgr.GetClient()}, opts.MaxEndpointsPerSlice, tracker, nil,
			&record.FakeRecorder{}, v1alpha1.EndpointSliceManagedBy, endpointslice.WithPreferSameTrafficDistributionEnabled(true)),
		doubts:    newDoubts(opts.Clock),
		failing:   newFailing(opts.Clock),
		additions: newAdditions(),
		pace:      paced,
		passes:    newPasses(opts.Clock),
		statuses:  newStatuses(),
		most:      int(opts.MaxEndpointsPerSlice),
		takeOver:  opts.TakeOverPeriod,
	}
	watch := &watcher{reader: mgr.GetClient(), pace: paced, tracker: tracker, additions: r.additions, statuses: r.statuses}
	err = ctrl.NewControllerManagedBy(mgr).
		Named(controllerName).
		For(&corev1.Service{}, builder.WithPredicates(predicate.Funcs{CreateFunc: watch.serviceCreated, UpdateFunc: watch.serviceUpdated})).
		Watches(&corev1.Service{}, watch.children()).
		Watches(&corev1.Pod{}, watch.pods()).
		Watches(&discoveryv1.EndpointSlice{}, watch.slices()).
		Watches(&v1alpha1.Network{}, watch.networks()).
		Watches(&v1alpha1.NodeNetwork{}, watch.nodeNetworks()).
		Watches(&v1alpha1.IPBlock{}, watch.blocks()).
		Watches(&v1alpha1.IPClaim{}, watch.ipClaims()).
		WithOptions(controller.Options{MaxConcurrentReconciles: opts.Workers}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("adding controller %s: %w", controllerName, err)
	}
	return nil
}
