// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchendpoints

import (
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/figures"
)

// group is a set of slices: those of one Service (a child counts as one),
// network and family, which are the Service's whose pods they tell of.
type group struct {
	of, service string
	family      discoveryv1.AddressType
}

// groupCount is how many groups a controller has: both families, ours of each
// network, under the Service's name and its child's.
func groupCount(of string) int {
	if of == ours {
		return 2 * 2 * len(networkNames())
	}
	return 2
}

type size struct{ endpoints, ready int }

// observer watches all slices, as a node would.
type observer struct {
	mu     sync.Mutex
	slices map[string]size
	sums   map[group]*size
	// By controller: the slices seen written since reset, how old each was by
	// its date, how many had none, and since when all groups are as wanted.
	written   map[string]int
	latencies map[string][]time.Duration
	undated   map[string]int
	wanted    int
	right     map[string]time.Time
}

func (w *world) observe(b *testing.B) *observer {
	b.Helper()
	o := &observer{slices: map[string]size{}, sums: map[group]*size{}}
	o.reset(0)
	config := rest.CopyConfig(w.config)
	config.ContentType = runtime.ContentTypeProtobuf // as kube-proxy
	clients, err := kubernetes.NewForConfig(config)
	must(b, err)
	// Informers watch anew where the API server ends a watch that it could not serve fast enough.
	factory := informers.NewSharedInformerFactoryWithOptions(clients, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = discoveryv1.LabelServiceName + "!=kubernetes" }))
	see := func(object any, gone bool) {
		if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = last.Obj
		}
		if slice, ok := object.(*discoveryv1.EndpointSlice); ok {
			o.see(slice, gone, time.Now())
		}
	}
	_, err = factory.Discovery().V1().EndpointSlices().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { see(object, false) },
		UpdateFunc: func(_, object any) { see(object, false) },
		DeleteFunc: func(object any) { see(object, true) },
	})
	must(b, err)
	factory.Start(b.Context().Done())
	factory.WaitForCacheSync(b.Context().Done())
	return o
}

func (o *observer) see(slice *discoveryv1.EndpointSlice, gone bool, now time.Time) {
	service := slice.Labels[discoveryv1.LabelServiceName]
	by := theirs
	if slice.Labels[discoveryv1.LabelManagedBy] == v1alpha1.EndpointSliceManagedBy {
		by = ours
	} else if service != theirs {
		return // what they leave for a selector that finds nothing
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	key := group{by, service + "/" + slice.Labels[v1alpha1.LabelNetwork], slice.AddressType}
	if o.sums[key] == nil {
		o.sums[key] = &size{}
	}
	before, next := o.slices[slice.Name], size{}
	if !gone {
		next.endpoints = len(slice.Endpoints)
		for i := range slice.Endpoints {
			if ptr.Deref(slice.Endpoints[i].Conditions.Ready, false) {
				next.ready++
			}
		}
	}
	o.slices[slice.Name] = next
	o.sums[key].endpoints += next.endpoints - before.endpoints
	o.sums[key].ready += next.ready - before.ready
	o.written[by]++
	if at, err := time.Parse(time.RFC3339Nano, slice.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
		o.latencies[by] = append(o.latencies[by], now.Sub(at))
	} else {
		o.undated[by]++
	}
	switch {
	case o.incomplete(by, o.wanted, readyOf) != nil:
		delete(o.right, by)
	case o.right[by].IsZero():
		o.right[by] = now
	}
}

func readyOf(s size) int     { return s.ready }
func endpointsOf(s size) int { return s.endpoints }

// complete wants so many of something in every group of these controllers.
func (o *observer) complete(of []string, want int, count func(size) int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, by := range of {
		if err := o.incomplete(by, want, count); err != nil {
			return err
		}
	}
	return nil
}

func (o *observer) incomplete(by string, want int, count func(size) int) error {
	found := 0
	for key, sum := range o.sums {
		if key.of != by {
			continue
		}
		found++
		if got := count(*sum); got != want {
			return fmt.Errorf("%d of %d in %+v", got, want, key)
		}
	}
	if found != groupCount(by) {
		return fmt.Errorf("%s has %d groups, want %d", by, found, groupCount(by))
	}
	return nil
}

// reset forgets what was written; from now on so many pods shall be ready.
func (o *observer) reset(wanted int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.written, o.undated, o.latencies = map[string]int{}, map[string]int{}, map[string][]time.Duration{}
	o.wanted, o.right = wanted, map[string]time.Time{}
}

// rightSince is when the last slice of a controller had become as wanted.
func (o *observer) rightSince(b *testing.B, of string) time.Time {
	b.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.right[of].IsZero() {
		b.Fatalf("the slices of %s are not as wanted", of)
	}
	return o.right[of]
}

// p99 is how long after a change the slices of a controller were seen. Each
// group must have been written once for each change, and dated: a write that is
// late and without a date would be missing from the figure.
func (o *observer) p99(b *testing.B, of string, changes int) (p99 time.Duration, writesPerGroup float64) {
	b.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	want := changes * groupCount(of)
	if len(o.latencies[of]) != want || o.undated[of] > 0 {
		b.Errorf("%s: %d slices were written with a date and %d without for %d changes, want %d and none", of, len(o.latencies[of]), o.undated[of], changes, want)
	}
	if len(o.latencies[of]) == 0 {
		b.Fatalf("no change of %s is dated", of)
	}
	return figures.Percentile(o.latencies[of], 99), float64(o.written[of]) / float64(want)
}
