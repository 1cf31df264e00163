// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// netplane-scheduler is kube-scheduler with the plugin NetworkFit, which
// places pods by their networks.
package main

import (
	"os"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client and queue metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // kubernetes_build_info

	"github.com/netplane/netplane/scheduler/app"
)

func main() {
	cmd := app.NewCommand()
	cmd.SetContext(genericapiserver.SetupSignalContext())
	os.Exit(cli.Run(cmd))
}
