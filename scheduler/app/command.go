// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/cache"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/cli/globalflag"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/term"
	"k8s.io/component-base/version/verflag"
	kubescheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// name is the program's, and what its informers are called in metrics.
const name = "netplane-scheduler"

// NewCommand returns the command netplane-scheduler, with kube-scheduler's
// flags. It schedules until the command's context ends.
func NewCommand() *cobra.Command {
	opts := options.NewOptions()
	cmd := &cobra.Command{
		Use:   name,
		Short: "kube-scheduler that places pods by their networks",
		Long: `netplane-scheduler is kube-scheduler with the plugin NetworkFit compiled in: it
places pods that name networks (annotation netplane.io/networks) on nodes whose
NICs reach them and that have addresses left. Its flags are kube-scheduler's;
--config names a KubeSchedulerConfiguration with a profile that enables
NetworkFit.`,
		Args: cobra.NoArgs,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return opts.ComponentGlobalsRegistry.Set()
		},
		// What the whole process shares is set before RunE, so that whoever runs the command beside others can wait for it.
		PreRunE: func(*cobra.Command, []string) error {
			verflag.PrintAndExitIfRequested()
			gates := opts.ComponentGlobalsRegistry.FeatureGateFor(basecompatibility.DefaultKubeComponent)
			if err := logsapi.ValidateAndApply(opts.Logs, gates); err != nil {
				return fmt.Errorf("setting up logging: %w", err)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			cliflag.PrintFlags(cmd.Flags())
			return run(cmd.Context(), opts)
		},
	}
	sections := opts.Flags
	verflag.AddFlags(sections.FlagSet("global"))
	globalflag.AddGlobalFlags(sections.FlagSet("global"), cmd.Name(), logs.SkipLoggingConfigurationFlags())
	for _, section := range sections.FlagSets {
		cmd.Flags().AddFlagSet(section)
	}
	columns, _, _ := term.TerminalSize(cmd.OutOrStdout()) // 0, which means no wrapping, where there is no terminal
	cliflag.SetUsageAndHelpFunc(cmd, *sections, columns)
	return cmd
}

// run schedules until the context ends or leadership is lost.
func run(ctx context.Context, opts *options.Options) error {
	informers, err := cache.NewInformerName(name)
	if err != nil {
		return fmt.Errorf("naming the informers: %w", err)
	}
	opts.InformerName = informers
	completed, sched, err := Setup(ctx, opts)
	if err != nil {
		return err
	}
	if gates, ok := opts.ComponentGlobalsRegistry.FeatureGateFor(basecompatibility.DefaultKubeComponent).(featuregate.MutableFeatureGate); ok {
		gates.AddMetrics()
	}
	opts.ComponentGlobalsRegistry.AddMetrics()
	return kubescheduler.Run(ctx, completed, sched)
}
