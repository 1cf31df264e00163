// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"strings"
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
	// attached is what netplane.io/attached-networks says of a pod that has what
	// it asks for, and no more.
	attached string
	err      error
}

// demands remembers what annotation texts say, because each node's pods are
// asked for each pod that is placed, and most pods share their text with their
// siblings. Reading takes no lock.
type demands struct {
	byText sync.Map // string -> *parsed
	count  atomic.Int64
	// changed are the pods that have not what they ask for: their interfaces
	// follow their annotation later.
	changed      sync.Map // texts -> capacity.Demand
	changedCount atomic.Int64
}

// texts are a pod's annotations netplane.io/networks and attached-networks.
type texts struct{ asked, attached string }

func newDemands() *demands { return &demands{} }

// of returns nil for a pod that asks for no network.
func (d *demands) of(pod *v1.Pod) *parsed {
	text := pod.Annotations[v1alpha1.AnnotationNetworks]
	if strings.TrimSpace(text) == "" { // a running pod may give up all that it asked for
		return nil
	}
	if known, ok := d.byText.Load(text); ok {
		return known.(*parsed)
	}
	requests, err := podnetworks.Parse(text)
	uses := podnetworks.Uses(requests)
	result := &parsed{requests: requests, demand: capacity.NewDemand(uses), attached: podnetworks.FormatAttached(uses), err: err}
	if d.count.Add(1) > maxDemands {
		d.byText.Clear()
		d.count.Store(1)
	}
	d.byText.Store(text, result)
	return result
}

// taken is what a pod takes of its node's addresses: the larger of what it asks
// for and of what it has, for a running pod's annotation may change, and its
// interfaces follow later. It is nothing if the pod has no network namespace of
// its own, for then no CNI plugin is ever run for it. A malformed annotation
// asks for nothing, for the agent refuses it.
func (d *demands) taken(pod *v1.Pod) capacity.Demand {
	if pod.Spec.HostNetwork {
		return nil
	}
	asked, attached := d.of(pod), pod.Annotations[v1alpha1.AnnotationAttached]
	readable := asked != nil && asked.err == nil
	switch {
	case readable && (attached == "" || attached == asked.attached):
		return asked.demand
	case attached == "":
		return nil
	}
	return d.larger(texts{pod.Annotations[v1alpha1.AnnotationNetworks], attached}, asked)
}

// larger is taken for a pod that has other interfaces than it asks for.
func (d *demands) larger(of texts, asked *parsed) capacity.Demand {
	if known, ok := d.changed.Load(of); ok {
		return known.(capacity.Demand)
	}
	var uses []podnetworks.Use
	if asked != nil && asked.err == nil {
		uses = podnetworks.Uses(asked.requests)
	}
	// Only agents write it; what cannot be read, they write again.
	if attached, err := podnetworks.ParseAttached(of.attached); err == nil {
		uses = podnetworks.Taken(uses, attached)
	}
	if d.changedCount.Add(1) > maxDemands {
		d.changed.Clear()
		d.changedCount.Store(1)
	}
	demand := capacity.NewDemand(uses)
	d.changed.Store(of, demand)
	return demand
}
