// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// Indexes over the manager's cache. Their names are our own, so that another
// controller's index on the same kind does not collide.
const (
	indexServiceNetwork = "endpointslice.service.network" // and anyNetwork for every Service that concerns us
	indexServiceParent  = "endpointslice.service.parent"  // children, by the parent's name
	indexSliceParent    = "endpointslice.slice.parent"    // slices of a Service and of its children
	indexSliceNetwork   = "endpointslice.slice.network"   // slices of ours
	indexPodNode        = "endpointslice.pod.node"        // pods with network-status only
	indexBlockHolder    = "endpointslice.block.holder"
	indexIPClaimPod     = "endpointslice.ipclaim.pod"
)

// anyNetwork is no network's name: it finds the Services that concern us,
// whether their annotation can be read or not.
const anyNetwork = "*"

func addIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	for _, index := range []struct {
		object client.Object
		field  string
		values client.IndexerFunc
	}{
		{&corev1.Service{}, indexServiceNetwork, indexValues(serviceNetworks)},
		{&corev1.Service{}, indexServiceParent, indexValues(serviceParent)},
		{&discoveryv1.EndpointSlice{}, indexSliceParent, indexValues(sliceParent)},
		{&discoveryv1.EndpointSlice{}, indexSliceNetwork, indexValues(sliceNetwork)},
		{&corev1.Pod{}, indexPodNode, indexValues(podNode)},
		{&v1alpha1.IPBlock{}, indexBlockHolder, indexValues(blockHolder)},
		{&v1alpha1.IPClaim{}, indexIPClaimPod, indexValues(claimedBy)},
	} {
		if err := indexer.IndexField(ctx, index.object, index.field, index.values); err != nil {
			return fmt.Errorf("adding the index %s: %w", index.field, err)
		}
	}
	return nil
}

func indexValues[T client.Object](values func(T) []string) client.IndexerFunc {
	return func(object client.Object) []string {
		typed, ok := object.(T)
		if !ok {
			return nil
		}
		return values(typed)
	}
}

func serviceNetworks(svc *corev1.Service) []string {
	if !concernsUs(svc) {
		return nil
	}
	networks, err := podnetworks.ParseService(svc.Annotations[v1alpha1.AnnotationNetworks])
	if err != nil {
		return []string{anyNetwork}
	}
	return append(networks.Networks(), anyNetwork)
}

func serviceParent(svc *corev1.Service) []string {
	if parent, ok := parentOf(svc); ok {
		return []string{parent}
	}
	return nil
}

func sliceParent(slice *discoveryv1.EndpointSlice) []string {
	if !isOurs(slice) {
		return nil
	}
	return []string{serviceOf(slice).Name}
}

func sliceNetwork(slice *discoveryv1.EndpointSlice) []string {
	if !isOurs(slice) {
		return nil
	}
	return []string{slice.Labels[v1alpha1.LabelNetwork]}
}

func podNode(pod *corev1.Pod) []string {
	if pod.Spec.NodeName == "" || pod.Annotations[v1alpha1.AnnotationNetworkStatus] == "" {
		return nil
	}
	return []string{pod.Spec.NodeName}
}

func blockHolder(block *v1alpha1.IPBlock) []string {
	return []string{onNode{block.Spec.NodeName, block.Spec.Network}.key()}
}

// claimedBy is the pod that has a fixed address.
func claimedBy(object *v1alpha1.IPClaim) []string {
	if object.Status.PodUID == "" {
		return nil
	}
	return []string{string(object.Status.PodUID)}
}

func (o onNode) key() string { return o.node + "/" + o.network }

// nodeLister gives the slice library Nodes from the manager's cache. It hands
// out the cache's own objects, as client-go's listers do.
type nodeLister struct{ reader client.Reader }

// List implements corelisters.NodeLister.
func (l nodeLister) List(selector labels.Selector) ([]*corev1.Node, error) {
	var nodes corev1.NodeList
	err := l.reader.List(context.Background(), &nodes, client.MatchingLabelsSelector{Selector: selector}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	out := make([]*corev1.Node, len(nodes.Items))
	for i := range nodes.Items {
		out[i] = &nodes.Items[i]
	}
	return out, nil
}

// Get implements corelisters.NodeLister. The error is not wrapped: the library
// asks it whether it means NotFound.
func (l nodeLister) Get(name string) (*corev1.Node, error) {
	var node corev1.Node
	err := l.reader.Get(context.Background(), client.ObjectKey{Name: name}, &node, uncopied())
	return &node, err
}

// uncopied reads the cache's own object; the caller must not change it.
func uncopied() *client.GetOptions {
	yes := true
	return &client.GetOptions{UnsafeDisableDeepCopy: &yes}
}
