// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	_ "sigs.k8s.io/scheduler-plugins/apis/config/scheme" // kube-scheduler's scheme learns NodeResourceTopologyMatchArgs
	"sigs.k8s.io/scheduler-plugins/pkg/noderesourcetopology"

	"github.com/netplane/netplane/scheduler/networkfit"
)

// What a user does who meets a scheduler that lacks CRDs.
const (
	installNetplane     = `install netplane's CustomResourceDefinitions with "kubectl apply -k manifests/base"`
	installNodeTopology = "install it with the agent that writes it, such as node-feature-discovery's topology-updater, or take NodeResourceTopologyMatch out of the profiles"
)

// newRegistry returns the plugins that are compiled in besides kube-scheduler's
// own. Being here costs nothing: a plugin is made, and asks for its CRD, only
// for a profile that enables it.
func newRegistry(sources *networkfit.Sources) (runtime.Registry, error) {
	registry := runtime.Registry{}
	if err := registry.Register(networkfit.Name, networkfit.Factory(sources)); err != nil {
		return nil, fmt.Errorf("registering NetworkFit: %w", err)
	}
	if err := registry.Register(noderesourcetopology.Name, noderesourcetopology.New); err != nil {
		return nil, fmt.Errorf("registering NodeResourceTopologyMatch: %w", err)
	}
	return registry, nil
}

// nodeTopologies is the resource that NodeResourceTopologyMatch watches.
func nodeTopologies() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "topology.node.k8s.io", Version: "v1alpha2", Resource: "noderesourcetopologies"}
}

// enables tells whether one of the profiles enables the plugin, at all
// extension points (which Names leaves out) or at some.
func enables(profiles []config.KubeSchedulerProfile, plugin string) bool {
	for i := range profiles {
		plugins := profiles[i].Plugins
		if plugins == nil {
			continue
		}
		if slices.Contains(plugins.Names(), plugin) {
			return true
		}
		if slices.ContainsFunc(plugins.MultiPoint.Enabled, func(p config.Plugin) bool { return p.Name == plugin }) {
			return true
		}
	}
	return false
}
