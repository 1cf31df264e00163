// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Command netplane-controller runs netplane's cluster-wide controllers: the
// status of Networks and PhysicalNetworks, the readiness of node agents and the
// labels of nodes, the clean-up of IPBlocks, fixed addresses, and EndpointSlices
// per network. It runs as a Deployment; only the replica that holds the lease acts.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/endpointslice"
	"github.com/netplane/netplane/netcontroller/ipblock"
	"github.com/netplane/netplane/netcontroller/ipclaim"
	"github.com/netplane/netplane/netcontroller/network"
	"github.com/netplane/netplane/netcontroller/nodenetwork"
)

// readyTimeout bounds how long a readiness probe waits for the caches.
const readyTimeout = 500 * time.Millisecond

// cacheSyncTimeout is how long reading the whole cluster may take. The default of
// two minutes is too short for 50,000 pods where the CPU is scarce; a controller
// that ends then would begin again.
const cacheSyncTimeout = 10 * time.Minute

func main() { os.Exit(run()) }

func run() int {
	opts := defaultOptions()
	flags := pflag.NewFlagSet(v1alpha1.FieldOwnerController, pflag.ContinueOnError)
	opts.addFlags(flags)
	if err := flags.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 2
	}
	if err := errors.Join(opts.validate(), logsapi.ValidateAndApply(opts.logging, nil)); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 2
	}
	ctrl.SetLogger(klog.Background())
	defer klog.Flush()
	limitGarbage()
	if err := serve(ctrl.SetupSignalHandler(), opts); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 1
	}
	return 0
}

// serve runs the controllers until ctx ends or the lease is lost.
func serve(ctx context.Context, opts *options) error {
	config, err := clientcmd.BuildConfigFromFlags("", opts.kubeconfig)
	if err != nil {
		return fmt.Errorf("reading how to reach the API server: %w", err)
	}
	config.QPS, config.Burst = opts.qps, opts.burst
	rest.AddUserAgent(config, v1alpha1.FieldOwnerController)
	if err := checkCRDs(config); err != nil {
		return err
	}
	mgr, err := newManager(config, opts)
	if err != nil {
		return err
	}
	if err := setup(mgr, opts); err != nil {
		return err
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("running the controllers: %w", err)
	}
	return nil
}

func newManager(config *rest.Config, opts *options) (ctrl.Manager, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("building the scheme: %w", err)
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                  scheme,
		Logger:                  klog.Background(),
		Metrics:                 metricsserver.Options{BindAddress: opts.metricsAddress},
		HealthProbeBindAddress:  opts.healthAddress,
		LeaderElection:          opts.leaderElect,
		LeaderElectionID:        v1alpha1.FieldOwnerController,
		LeaderElectionNamespace: opts.namespace,
		// serve returns right after Start, so that nothing acts without the lease.
		LeaderElectionReleaseOnCancel: true,
		Cache:                         cacheOptions(),
		Controller:                    ctrlconfig.Controller{CacheSyncTimeout: cacheSyncTimeout},
	})
	if err != nil {
		return nil, fmt.Errorf("making the controller manager: %w", err)
	}
	return mgr, nil
}

// setup registers controllers and probes with mgr.
//
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=netplane-system,resources=leases,verbs=get;create;update
func setup(mgr ctrl.Manager, opts *options) error {
	if err := network.Setup(mgr, network.Options{CounterInterval: opts.counterInterval}); err != nil {
		return err
	}
	if err := nodenetwork.Setup(mgr, nodenetwork.Options{SystemNamespace: opts.namespace}); err != nil {
		return err
	}
	if err := ipblock.Setup(mgr, ipblock.Options{Grace: opts.nodeGrace}); err != nil {
		return err
	}
	if err := ipclaim.Setup(mgr, ipclaim.Options{Grace: opts.nodeGrace}); err != nil {
		return err
	}
	if err := endpointslice.Setup(mgr, endpointslice.Options{}); err != nil {
		return err
	}
	compares, err := newComparer(mgr)
	if err != nil {
		return err
	}
	if err := mgr.Add(compares); err != nil {
		return fmt.Errorf("adding the comparison with the API server: %w", err)
	}
	if err := mgr.Add(giveBack{}); err != nil {
		return fmt.Errorf("adding the return of memory: %w", err)
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return fmt.Errorf("adding the liveness check: %w", err)
	}
	if err := mgr.AddReadyzCheck("caches", cachesSynced(mgr.GetCache())); err != nil {
		return fmt.Errorf("adding the readiness check: %w", err)
	}
	return nil
}

// cachesSynced is ready once the caches are filled: also on a replica that
// waits for the lease, which then takes over at once.
func cachesSynced(caches cache.Cache) healthz.Checker {
	return func(request *http.Request) error {
		ctx, cancel := context.WithTimeout(request.Context(), readyTimeout)
		defer cancel()
		if !caches.WaitForCacheSync(ctx) {
			return errors.New("the caches are not filled yet")
		}
		return nil
	}
}
