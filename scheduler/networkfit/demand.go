// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"sync"
	"sync/atomic"

	v1 "k8s.io/api/core/v1"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/capacity"
)

// maxDemands bounds how many annotation texts are remembered.
const maxDemands = 16384

// parsed is what one text of the annotation netplane.io/networks says.
type parsed struct {
	requests []podnetworks.Request
	demand   capacity.Demand
	err      error
}

// demands remembers what annotation texts say, because each node's pods are
// asked for each pod that is placed, and most pods share their text with their
// siblings. Reading takes no lock.
type demands struct {
	byText sync.Map // string -> *parsed
	count  atomic.Int64
}

func newDemands() *demands { return &demands{} }

// of returns nil for a pod that asks for no network.
func (d *demands) of(pod *v1.Pod) *parsed {
	text, ok := pod.Annotations[v1alpha1.AnnotationNetworks]
	if !ok {
		return nil
	}
	if known, ok := d.byText.Load(text); ok {
		return known.(*parsed)
	}
	requests, err := podnetworks.Parse(text)
	result := &parsed{requests: requests, demand: capacity.NewDemand(podnetworks.Demand(requests), fixedDemand(requests)), err: err}
	if d.count.Add(1) > maxDemands {
		d.byText.Clear()
		d.count.Store(1)
	}
	d.byText.Store(text, result)
	return result
}

// taken is what a pod takes of its node's addresses: nothing if it has no
// network namespace of its own, for then no CNI plugin is ever run for it, or
// if its annotation is malformed, for then the agent refuses it.
func (d *demands) taken(pod *v1.Pod) capacity.Demand {
	if pod.Spec.HostNetwork {
		return nil
	}
	if p := d.of(pod); p != nil && p.err == nil {
		return p.demand
	}
	return nil
}
