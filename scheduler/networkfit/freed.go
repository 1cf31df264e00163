// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/capacity"
)

// freedLag is how long the scheduler's own cache may take to show what the
// informer tells its handlers of.
const freedLag = time.Second

// activator has pods tried again; all profiles of a process share one queue.
type activator interface {
	Activate(logger klog.Logger, pods map[string]*v1.Pod)
}

// tell names the queue of the pods that wait.
func (s *Sources) tell(queue activator) { s.queue.Store(&queue) }

// freed has the pods tried again that wait for what a running pod takes no more:
// its annotation has changed, and its interfaces have followed.
//
// A queueing hint for updates of assigned pods would do the same without a lag,
// but it would be called for each of kubelet's status updates and each rejected
// pod, under the queue's lock.
func (s *Sources) freed(oldObj, newObj any) {
	before, ok1 := oldObj.(*v1.Pod)
	after, ok2 := newObj.(*v1.Pod)
	if !ok1 || !ok2 || before.Spec.NodeName == "" ||
		before.Annotations[v1alpha1.AnnotationAttached] == after.Annotations[v1alpha1.AnnotationAttached] &&
			before.Annotations[v1alpha1.AnnotationNetworks] == after.Annotations[v1alpha1.AnnotationNetworks] {
		return
	}
	var networks []string
	now := capacity.Load(s.demands.taken(after))
	for _, was := range s.demands.taken(before) {
		if now.Interfaces(was.Network) < was.Addresses+was.Fixed || now.Of(was.Network) < was.Addresses {
			networks = append(networks, was.Network)
		}
	}
	if len(networks) > 0 {
		s.after(freedLag, func() { s.wake(networks) })
	}
}

// wake has the pods tried again that wait for one of the networks, or for NICs
// that these share.
func (s *Sources) wake(networks []string) {
	queue := s.queue.Load()
	if queue == nil {
		return
	}
	for _, name := range slices.Clone(networks) {
		if net, ok := lookup[*network](s.networks, name); ok && net.takesNIC() {
			networks = append(networks, s.sharing(net.Spec.PhysicalNet)...)
		}
	}
	waiting := map[string]*v1.Pod{}
	for _, name := range networks {
		objects, err := s.pods.ByIndex(indexWaitingByNetwork, name)
		if err != nil {
			return // the index exists since NewSources
		}
		for _, obj := range objects {
			if pod, ok := obj.(*v1.Pod); ok {
				waiting[string(pod.UID)] = pod
			}
		}
	}
	if len(waiting) > 0 {
		(*queue).Activate(klog.Background(), waiting)
	}
}
