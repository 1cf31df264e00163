// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tight tests Networks that have fewer blocks than nodes, with all who
// take part against a real API server: two netplane-schedulers, as they are
// shipped, in processes of their own; the controller that says that a Network
// is Tight; and the address management of each node's agent. Only kubelets are
// missing: the tests reserve a bound pod's address as a CNI ADD would.
package tight

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/network"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/schedulerprocess"
)

// otherScheduler is the profile of the second scheduler.
const otherScheduler = "netplane-other"

// What the tests share: the API server, and an administrator's client of it.
var (
	connection *rest.Config
	api        client.Client
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if code, scheduled := schedulerprocess.Main(); scheduled {
		return code
	}
	ctrllog.SetLogger(klog.Background())
	config, stop, err := apiserver.Launch()
	if errors.Is(err, apiserver.ErrNoAssets) {
		fmt.Fprintln(os.Stderr, "skipped:", err)
		return 0
	}
	code := 1
	if err == nil {
		connection = rest.CopyConfig(config)
		connection.QPS = -1
		code, err = runAll(m)
	}
	if stop != nil {
		err = errors.Join(err, stop())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// runAll runs the tests with controller and schedulers, which end before the
// API server does: it waits for open watches.
func runAll(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "netplane-tight-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := install(ctx); err != nil {
		return 1, err
	}
	ended, err := startController(ctx)
	if err != nil {
		return 1, err
	}
	defer func() {
		cancel()
		err = errors.Join(err, <-ended)
	}()
	for _, profile := range []string{v1alpha1.DefaultSchedulerName, otherScheduler} {
		scheduler, err := startScheduler(dir, profile)
		if err != nil {
			return 1, err
		}
		defer scheduler.Kill()
	}
	return m.Run(), nil
}

// install gives the API server what is shipped: the scheduler's rights and the
// policy that holds blocks to their Networks.
func install(ctx context.Context) error {
	var err error
	if api, err = apiserver.NewClient(connection); err != nil {
		return err
	}
	if err := api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}); err != nil {
		return fmt.Errorf("creating the namespace: %w", err)
	}
	return apiserver.Apply(ctx, api, apiserver.Manifests+"/scheduler/rbac.yaml", apiserver.Manifests+"/policies/ipblock-in-network.yaml")
}

func startController(ctx context.Context) (ended <-chan error, err error) {
	mgr, err := ctrl.NewManager(connection, ctrl.Options{Scheme: api.Scheme(), Metrics: server.Options{BindAddress: "0"}})
	if err != nil {
		return nil, fmt.Errorf("making the controller: %w", err)
	}
	if err := network.Setup(mgr, network.Options{Registerer: prometheus.NewRegistry()}); err != nil {
		return nil, err
	}
	out := make(chan error, 1)
	go func() { out <- mgr.Start(ctx) }()
	return out, nil
}

// startScheduler runs a scheduler with the shipped configuration, but for its name.
func startScheduler(dir, profile string) (*schedulerprocess.Process, error) {
	own := filepath.Join(dir, profile)
	if err := os.Mkdir(own, 0o700); err != nil {
		return nil, err
	}
	file, err := schedulerprocess.WriteConfig(schedulerprocess.Shipped, connection, own, func(configuration map[string]any) {
		configuration["profiles"].([]any)[0].(map[string]any)["schedulerName"] = profile
	})
	if err != nil {
		return nil, err
	}
	return schedulerprocess.Launch(file, "--leader-elect=false")
}
