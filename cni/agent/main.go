// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Command netplane-agent runs on every node. It publishes which NICs back
// which physical networks, holds the node's addresses, makes the interfaces of
// the pods that ask for networks, and installs the CNI binary that calls it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/netplane/netplane/api/v1alpha1"
)

func main() { os.Exit(run()) }

func run() int {
	opts := defaultOptions()
	flags := pflag.NewFlagSet(v1alpha1.FieldOwnerAgent, pflag.ContinueOnError)
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
	tightenGC()
	ctrl.SetLogger(klog.Background())
	defer klog.Flush()
	if err := serve(ctrl.SetupSignalHandler(), opts); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 1
	}
	return 0
}

// serve runs the agent until ctx ends. The CNI configuration stays in place
// then: the CNI binary gets along without the agent for pods that ask for no
// network, and says so to those that do.
func serve(ctx context.Context, opts *options) error {
	config, err := apiServer(opts.kubeconfig)
	if err != nil {
		return fmt.Errorf("reading how to reach the API server: %w", err)
	}
	config.QPS, config.Burst = opts.qps, opts.burst
	rest.AddUserAgent(config, v1alpha1.FieldOwnerAgent)
	mgr, err := newManager(config, opts)
	if err != nil {
		return err
	}
	a, err := newAgent(mgr, opts)
	if err != nil {
		return err
	}
	defer a.close()
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("running the agent: %w", err)
	}
	return nil
}

// apiServer reads the kubeconfig, or else what every pod is given.
func apiServer(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}
