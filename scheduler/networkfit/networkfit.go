// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package networkfit is the scheduler plugin that places pods by their
// networks: on nodes whose NICs back the physical networks and whose address
// blocks have room.
//
// It keeps no account of its own. What is in use on a node is the demand of
// the pods in the NodeInfo that the framework hands to Filter, plus what the
// node's agent holds for pods that are gone. Assumed and forgotten pods,
// preemption, nominated pods, pod groups, pods of other schedulers and
// restarts are thereby right without any code here.
//
// There is one file for each extension point.
package networkfit

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/scheduler/config"
)

// Name is the plugin's name in a KubeSchedulerConfiguration and in messages.
const Name = "NetworkFit"

var (
	_ fwk.PreFilterPlugin   = &NetworkFit{}
	_ fwk.FilterPlugin      = &NetworkFit{}
	_ fwk.PreScorePlugin    = &NetworkFit{}
	_ fwk.ScorePlugin       = &NetworkFit{}
	_ fwk.EnqueueExtensions = &NetworkFit{}
	_ fwk.SignPlugin        = &NetworkFit{}
)

// NetworkFit is the plugin of one profile. It is safe for concurrent use.
type NetworkFit struct {
	args    *config.NetworkFitArgs
	sources *Sources
}

// New makes the plugin of one profile. All profiles of a process share one
// Sources.
func New(raw runtime.Object, sources *Sources) (*NetworkFit, error) {
	args, err := config.Decode(raw)
	if err != nil {
		return nil, err
	}
	return &NetworkFit{args: args, sources: sources}, nil
}

// Factory is New in the form in which kube-scheduler registers plugins.
func Factory(sources *Sources) func(context.Context, runtime.Object, fwk.Handle) (fwk.Plugin, error) {
	return func(_ context.Context, raw runtime.Object, _ fwk.Handle) (fwk.Plugin, error) {
		return New(raw, sources)
	}
}

// Name returns the plugin's name.
func (pl *NetworkFit) Name() string { return Name }
