// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"fmt"
	"sync/atomic"
	"time"
	"unique"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Names of the indexes; they are shared with whoever else indexes the same
// informers, hence the prefix.
const (
	indexBlocksByNode     = "netplane.io/node"
	indexFixedByOwner     = "netplane.io/owner"
	indexNICs             = "netplane.io/nics"
	indexNodes            = "netplane.io/changed" // empty, see views
	indexPodsByUID        = "netplane.io/uid"
	indexWaitingByNetwork = "netplane.io/waiting"
)

// Sources are the caches that the plugin reads.
//
// They belong to the very informers whose events requeue pods: an informer
// updates its store, indexes included, before it tells anyone, so a pod that
// is woken by an event finds the data that the event speaks of. With informers
// of its own the plugin could be asked before they have caught up, and the pod
// would wait for the next event, or five minutes (kubernetes/kubernetes#93552).
// For the same reason everything derived hangs on the stored objects (see
// node and network), is an index, or is made stale by an index function (see
// views), and nothing is filled by event handlers.
type Sources struct {
	nodes      cache.Indexer // *node, by name
	networks   cache.Indexer // *network, by name
	blocks     cache.Indexer // *block, by name
	fixed      cache.Indexer // *v1alpha1.IPClaim, by name
	namespaces cache.Indexer // *v1.Namespace, by name
	pods       cache.Indexer // *v1.Pod that are neither Succeeded nor Failed
	demands    *demands
	views      *views
	// Of Tight networks: which blocks exist, and which are on their way.
	inventories inventories
	claims      claims
	// Of what hot plug frees, see freed.
	queue atomic.Pointer[activator]
	after func(time.Duration, func())
}

// NewSources prepares the informers: it makes them hand out typed objects and
// adds indexes. It must be called before they are started, and once only.
func NewSources(dynamic dynamicinformer.DynamicSharedInformerFactory, pods cache.SharedIndexInformer) (*Sources, error) {
	sources := &Sources{pods: pods.GetIndexer(), demands: newDemands(), views: &views{}}
	sources.after = func(lag time.Duration, do func()) { time.AfterFunc(lag, do) }
	if err := pods.AddIndexers(sources.podIndexers()); err != nil {
		return nil, fmt.Errorf("indexing pods: %w", err)
	}
	if _, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: sources.freed}); err != nil {
		return nil, fmt.Errorf("watching pods: %w", err)
	}
	for _, source := range []struct {
		resource  schema.GroupVersionResource
		transform cache.TransformFunc
		indexers  cache.Indexers
		into      *cache.Indexer
	}{
		{nodeNetworks(), toNode, sources.nodeIndexers(), &sources.nodes},
		{networks(), toNetwork, cache.Indexers{indexNICs: nicsOf}, &sources.networks},
		{ipBlocks(), toIPBlock, sources.blockIndexers(), &sources.blocks},
		{ipClaims(), toIPClaim, cache.Indexers{indexFixedByOwner: claimOwner}, &sources.fixed},
		{namespaces(), toNamespace, nil, &sources.namespaces},
	} {
		informer := dynamic.ForResource(source.resource).Informer()
		if err := informer.SetTransform(source.transform); err != nil {
			return nil, fmt.Errorf("typing the cache of %s: %w", source.resource.Resource, err)
		}
		if err := informer.AddIndexers(source.indexers); err != nil {
			return nil, fmt.Errorf("indexing %s: %w", source.resource.Resource, err)
		}
		if source.indexers != nil {
			if _, err := informer.AddEventHandler(sources.staleness()); err != nil {
				return nil, fmt.Errorf("watching %s: %w", source.resource.Resource, err)
			}
		}
		*source.into = informer.GetIndexer()
	}
	return sources, nil
}

func (s *Sources) nodeIndexers() cache.Indexers {
	return cache.Indexers{indexNodes: s.views.changedNode}
}

func (s *Sources) blockIndexers() cache.Indexers {
	return cache.Indexers{indexBlocksByNode: s.changedBlock}
}

func (s *Sources) podIndexers() cache.Indexers {
	return cache.Indexers{indexPodsByUID: s.podUID, indexWaitingByNetwork: s.waitsFor}
}

// staleness makes stale what is remembered of objects that were lost, or changed
// hands, while their informer was listing anew, see views.
func (s *Sources) staleness() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(before, after any) {
			switch now := after.(type) {
			case *block:
				if was, ok := before.(*block); ok && was.node != now.node {
					s.changed(was)
				}
			case *network:
				if !now.tight {
					s.inventories.forget(now.Name)
				}
			}
		},
		DeleteFunc: func(obj any) {
			if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = unknown.Obj
			}
			s.changed(obj)
			if net, ok := obj.(*network); ok {
				s.inventories.forget(net.Name)
			}
		},
	}
}

// changed makes stale what is remembered of an object's node, and of its
// network's blocks.
func (s *Sources) changed(obj any) {
	switch o := obj.(type) {
	case *node:
		s.views.changed(o.name)
	case *block:
		s.views.changed(o.nodeName())
		s.inventories.note(o)
	}
}

// The resources that the plugin watches.
func nodeNetworks() schema.GroupVersionResource {
	return v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceNodeNetworks)
}

func networks() schema.GroupVersionResource {
	return v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceNetworks)
}

func ipBlocks() schema.GroupVersionResource {
	return v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceIPBlocks)
}

func ipClaims() schema.GroupVersionResource {
	return v1alpha1.SchemeGroupVersion.WithResource(v1alpha1.ResourceIPClaims)
}

func namespaces() schema.GroupVersionResource {
	return v1.SchemeGroupVersion.WithResource("namespaces")
}

// RequiredResources are the custom resources without which the plugin's
// informers, and with them the scheduler, would wait for ever.
func RequiredResources() []schema.GroupVersionResource {
	return []schema.GroupVersionResource{networks(), nodeNetworks(), ipBlocks(), ipClaims()}
}

// typed turns what a dynamic informer receives into a T. Anything else is
// passed through: a transform is also called on what it has made itself.
func typed[T any](obj any) (value *T, ok bool, err error) {
	raw, isRaw := obj.(*unstructured.Unstructured)
	if !isRaw {
		return nil, false, nil
	}
	value = new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw.Object, value); err != nil {
		return nil, false, fmt.Errorf("reading %s %s: %w", raw.GetKind(), raw.GetName(), err)
	}
	return value, true, nil
}

// shared returns one copy of a text that many objects have in common.
func shared(text string) string { return unique.Make(text).Value() }

func toNode(obj any) (any, error) {
	value, ok, err := typed[v1alpha1.NodeNetwork](obj)
	if !ok || err != nil {
		return obj, err
	}
	return newNode(value), nil
}

func toNetwork(obj any) (any, error) {
	value, ok, err := typed[v1alpha1.Network](obj)
	if !ok || err != nil {
		return obj, err
	}
	value.ManagedFields = nil
	return newNetwork(value), nil
}

func toIPBlock(obj any) (any, error) {
	value, ok, err := typed[v1alpha1.IPBlock](obj)
	if !ok || err != nil {
		return obj, err
	}
	return newBlock(value), nil
}

func toIPClaim(obj any) (any, error) {
	value, ok, err := typed[v1alpha1.IPClaim](obj)
	if !ok || err != nil {
		return obj, err
	}
	return &v1alpha1.IPClaim{
		ObjectMeta: metav1.ObjectMeta{
			Name: value.Name, UID: value.UID, ResourceVersion: value.ResourceVersion,
			CreationTimestamp: value.CreationTimestamp, DeletionTimestamp: value.DeletionTimestamp, // which of several counts
		},
		Spec: value.Spec, Status: value.Status,
	}, nil
}

func toNamespace(obj any) (any, error) {
	value, ok, err := typed[v1.Namespace](obj)
	if !ok || err != nil {
		return obj, err
	}
	return &v1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: value.Name, UID: value.UID, ResourceVersion: value.ResourceVersion, Labels: value.Labels,
	}}, nil
}

// changedBlock indexes blocks by the node that holds them, and tells those who
// wait for it.
func (s *Sources) changedBlock(obj any) ([]string, error) {
	b, ok := obj.(*block)
	if !ok {
		return nil, nil
	}
	s.claims.shows(b.name)
	s.changed(b)
	return []string{b.nodeName()}, nil
}

// podUID indexes the pods that an agent may hold addresses for.
func (s *Sources) podUID(obj any) ([]string, error) {
	pod, ok := obj.(*v1.Pod)
	if !ok {
		return nil, nil
	}
	_, attached := pod.Annotations[v1alpha1.AnnotationAttached]
	if !attached && s.demands.of(pod) == nil {
		return nil, nil
	}
	return []string{string(pod.UID)}, nil
}

// waitsFor indexes the pods that have no node yet by their networks.
func (s *Sources) waitsFor(obj any) ([]string, error) {
	pod, ok := obj.(*v1.Pod)
	if !ok || pod.Spec.NodeName != "" {
		return nil, nil
	}
	var names []string
	for _, count := range s.demands.taken(pod) {
		names = append(names, count.Network)
	}
	return names, nil
}

// lookup reads one object of a cache that is keyed by name.
func lookup[T any](indexer cache.Indexer, name string) (value T, ok bool) {
	obj, found, err := indexer.GetByKey(name)
	if !found || err != nil {
		return value, false
	}
	value, ok = obj.(T)
	return value, ok
}

// podExists tells whether a pod with this UID, that asks for networks, has not ended.
func (s *Sources) podExists(uid types.UID) bool {
	keys, err := s.pods.IndexKeys(indexPodsByUID, string(uid))
	return err == nil && len(keys) > 0
}
