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
// restarts are thereby right without any code here. The one exception is a
// block that is on its way: of a Network that is Tight the scheduler claims
// blocks on demand, for the node that it has chosen (see claims).
//
// There is one file for each extension point.
package networkfit

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
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
	_ fwk.ReservePlugin     = &NetworkFit{}
	_ fwk.PreBindPlugin     = &NetworkFit{}
	_ fwk.PostBindPlugin    = &NetworkFit{}
)

// NetworkFit is the plugin of one profile. It is safe for concurrent use.
type NetworkFit struct {
	args    *config.NetworkFitArgs
	sources *Sources
	metrics *pluginMetrics
	handle  fwk.Handle  // for its snapshot of the nodes
	blocks  blockClient // nil: nothing is claimed on demand
}

// New makes the plugin of one profile. All profiles of a process share one
// Sources.
func New(raw runtime.Object, sources *Sources) (*NetworkFit, error) {
	args, err := config.Decode(raw)
	if err != nil {
		return nil, err
	}
	metrics, err := registerMetrics(sources)
	if err != nil {
		return nil, err
	}
	return &NetworkFit{args: args, sources: sources, metrics: metrics}, nil
}

// Factory is New in the form in which kube-scheduler registers plugins.
func Factory(sources *Sources) func(context.Context, runtime.Object, fwk.Handle) (fwk.Plugin, error) {
	return func(_ context.Context, raw runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
		pl, err := New(raw, sources)
		if err != nil {
			return nil, err
		}
		if handle == nil || handle.KubeConfig() == nil {
			return pl, nil
		}
		client, err := dynamic.NewForConfig(handle.KubeConfig())
		if err != nil {
			return nil, fmt.Errorf("making a client for IPBlocks: %w", err)
		}
		pl.handle, pl.blocks = handle, dynamicBlocks{client.Resource(ipBlocks())}
		sources.tell(handle)
		return pl, nil
	}
}

// Name returns the plugin's name.
func (pl *NetworkFit) Name() string { return Name }
