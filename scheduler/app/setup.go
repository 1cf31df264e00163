// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package app is kube-scheduler with NetworkFit compiled in, and
// NodeResourceTopologyMatch of scheduler-plugins for profiles that want it.
//
// kube-scheduler's own Setup keeps the factory of its dynamic informers to
// itself, so that a plugin would need a second watch of the same objects and
// could be asked about a pod before that one has caught up with the event that
// woke the pod. The Setup here is the same in all but that: plugins are given
// the factory. Everything else, flags, leader election, health, metrics, is
// kube-scheduler's.
package app

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	appconfig "k8s.io/kubernetes/cmd/kube-scheduler/app/config"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"sigs.k8s.io/scheduler-plugins/pkg/noderesourcetopology"

	"github.com/netplane/netplane/scheduler/networkfit"
)

// Setup makes a scheduler from flags and configuration file. It fails within
// seconds, naming the cure, where netplane's CRDs are not installed.
func Setup(ctx context.Context, opts *options.Options) (*appconfig.CompletedConfig, *scheduler.Scheduler, error) {
	defaults, err := latest.Default()
	if err != nil {
		return nil, nil, fmt.Errorf("making the default configuration: %w", err)
	}
	opts.ComponentConfig = defaults
	if errs := opts.Validate(); len(errs) > 0 {
		return nil, nil, fmt.Errorf("validating flags: %w", utilerrors.NewAggregate(errs))
	}
	cfg, err := opts.Config(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the configuration: %w", err)
	}
	completed := cfg.Complete()
	if err := checkProfiles(completed.ComponentConfig.Profiles); err != nil {
		return nil, nil, err
	}
	sched, profiles, err := newScheduler(ctx, &completed)
	if err != nil {
		return nil, nil, err
	}
	if err := options.LogOrWriteConfig(klog.FromContext(ctx), opts.WriteConfigTo, &completed.ComponentConfig, profiles); err != nil {
		return nil, nil, fmt.Errorf("writing the configuration: %w", err)
	}
	return &completed, sched, nil
}

// checkProfiles refuses a configuration in which nothing is placed by network:
// most likely --config was forgotten, and this would be a second, unwanted
// default-scheduler.
func checkProfiles(profiles []config.KubeSchedulerProfile) error {
	if enables(profiles, networkfit.Name) {
		return nil
	}
	return errors.New("no profile enables the plugin NetworkFit: start with --config and a configuration such as manifests/base/scheduler/config.yaml")
}

// newScheduler also returns the profiles with all defaults filled in.
func newScheduler(ctx context.Context, cc *appconfig.CompletedConfig) (*scheduler.Scheduler, []config.KubeSchedulerProfile, error) {
	if err := awaitResources(ctx, cc.KubeConfig, networkfit.RequiredResources(), installNetplane); err != nil {
		return nil, nil, err
	}
	if enables(cc.ComponentConfig.Profiles, noderesourcetopology.Name) {
		if err := awaitResources(ctx, cc.KubeConfig, []schema.GroupVersionResource{nodeTopologies()}, installNodeTopology); err != nil {
			return nil, nil, err
		}
	}
	sources, err := networkfit.NewSources(cc.DynInformerFactory, cc.InformerFactory.Core().V1().Pods().Informer())
	if err != nil {
		return nil, nil, err
	}
	registry, err := newRegistry(sources)
	if err != nil {
		return nil, nil, err
	}
	recorders := func(name string) events.EventRecorderLogger { return cc.EventBroadcaster.NewRecorder(name) }
	var profiles []config.KubeSchedulerProfile
	sched, err := scheduler.New(ctx, cc.Client, cc.InformerFactory, cc.DynInformerFactory, recorders,
		scheduler.WithFrameworkOutOfTreeRegistry(registry),
		scheduler.WithComponentConfigVersion(cc.ComponentConfig.APIVersion),
		scheduler.WithKubeConfig(cc.KubeConfig),
		scheduler.WithProfiles(cc.ComponentConfig.Profiles...),
		scheduler.WithExtenders(cc.ComponentConfig.Extenders...),
		scheduler.WithParallelism(cc.ComponentConfig.Parallelism),
		scheduler.WithPercentageOfNodesToScore(cc.ComponentConfig.PercentageOfNodesToScore),
		scheduler.WithPodInitialBackoffSeconds(cc.ComponentConfig.PodInitialBackoffSeconds),
		scheduler.WithPodMaxBackoffSeconds(cc.ComponentConfig.PodMaxBackoffSeconds),
		scheduler.WithPodMaxInUnschedulablePodsDuration(cc.PodMaxInUnschedulablePodsDuration),
		scheduler.WithBuildFrameworkCapturer(func(profile config.KubeSchedulerProfile) { profiles = append(profiles, profile) }),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("making the scheduler: %w", err)
	}
	return sched, profiles, nil
}
