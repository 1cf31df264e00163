// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/serviceproxy"
)

// services implements serviceproxy.Watch. Of a cluster's EndpointSlices the
// agent gets those of the Networks that it asks for; its Services cannot be told
// apart by the API server, so that of each is kept where its ClusterIP leads.
//
// +kubebuilder:rbac:groups="",resources=services,verbs=get;list;watch
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=get;list;watch
type services struct {
	mgr    ctrl.Manager
	counts *watched
}

func (s services) Services(ctx context.Context, changed func()) (func() ([]*corev1.Service, bool), error) {
	fill, err := followApart(ctx, s.mgr, &corev1.Service{}, cache.ByObject{Transform: slimService}, s.counts, changed)
	if err != nil {
		return nil, err
	}
	return func() ([]*corev1.Service, bool) {
		var list corev1.ServiceList
		known := fill(&list)
		return pointers(list.Items), known
	}, nil
}

func (s services) Slices(ctx context.Context, network string, changed func()) (func() ([]*discoveryv1.EndpointSlice, bool), error) {
	of, err := labels.Parse(fmt.Sprintf("%s=%s,%s=%s,!%s", discoveryv1.LabelManagedBy, v1alpha1.EndpointSliceManagedBy,
		v1alpha1.LabelNetwork, network, v1alpha1.LabelService)) // child Services are headless
	if err != nil {
		return nil, err
	}
	fill, err := followApart(ctx, s.mgr, &discoveryv1.EndpointSlice{}, cache.ByObject{Label: of, Transform: slimSlice}, s.counts, changed)
	if err != nil {
		return nil, err
	}
	return func() ([]*discoveryv1.EndpointSlice, bool) {
		var list discoveryv1.EndpointSliceList
		known := fill(&list)
		return pointers(list.Items), known
	}, nil
}

// slimService keeps what says where connections to a ClusterIP go; of a Service
// without one, the name.
func slimService(obj any) (any, error) {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return obj, nil
	}
	slim := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: svc.Name, Namespace: svc.Namespace, UID: svc.UID, ResourceVersion: svc.ResourceVersion}}
	if svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return slim, nil
	}
	if networks, named := svc.Annotations[v1alpha1.AnnotationNetworks]; named {
		metav1.SetMetaDataAnnotation(&slim.ObjectMeta, v1alpha1.AnnotationNetworks, networks)
	}
	if proxy, ok := svc.Labels[serviceproxy.LabelServiceProxyName]; ok {
		metav1.SetMetaDataLabel(&slim.ObjectMeta, serviceproxy.LabelServiceProxyName, proxy)
	}
	slim.Spec = corev1.ServiceSpec{
		Type: svc.Spec.Type, ClusterIP: svc.Spec.ClusterIP, ClusterIPs: svc.Spec.ClusterIPs, InternalTrafficPolicy: svc.Spec.InternalTrafficPolicy,
		SessionAffinity: svc.Spec.SessionAffinity, SessionAffinityConfig: svc.Spec.SessionAffinityConfig,
	}
	for i := range svc.Spec.Ports {
		port := &svc.Spec.Ports[i]
		slim.Spec.Ports = append(slim.Spec.Ports, corev1.ServicePort{Name: port.Name, Protocol: port.Protocol, Port: port.Port})
	}
	return slim, nil
}

// slimSlice keeps whose endpoints these are, and which of them answer to whom.
func slimSlice(obj any) (any, error) {
	slice, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return obj, nil
	}
	slim := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: slice.Name, Namespace: slice.Namespace, UID: slice.UID, ResourceVersion: slice.ResourceVersion, Labels: map[string]string{}},
		AddressType: slice.AddressType, Ports: slice.Ports, Endpoints: make([]discoveryv1.Endpoint, len(slice.Endpoints)),
	}
	for _, key := range []string{discoveryv1.LabelServiceName, v1alpha1.LabelNetwork} {
		slim.Labels[key] = slice.Labels[key]
	}
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		slim.Endpoints[i] = discoveryv1.Endpoint{Addresses: e.Addresses, Conditions: e.Conditions, NodeName: e.NodeName, Hints: e.Hints}
	}
	return slim, nil
}

// makeClusterIPs makes what keeps the rules of pods on Networks with
// serviceProxy InPod.
func (a *agent) makeClusterIPs(nodeName string) {
	reader := a.mgr.GetClient()
	a.clusterIPs = serviceproxy.New(serviceproxy.Deps{
		Links: a.links, Watch: services{a.mgr, &a.watched},
		Networks: func() []v1alpha1.Network {
			var list v1alpha1.NetworkList
			if err := reader.List(context.Background(), &list, client.UnsafeDisableDeepCopy); err != nil {
				return nil
			}
			return append([]v1alpha1.Network{}, list.Items...) // not nil: there may be none
		},
		Pods: func() []serviceproxy.Pod { return a.server.ServicePods() },
		Place: func() serviceproxy.Place {
			var node corev1.Node
			if err := reader.Get(context.Background(), types.NamespacedName{Name: nodeName}, &node); err != nil {
				return serviceproxy.Place{Node: nodeName}
			}
			return serviceproxy.Place{Node: nodeName, Zone: node.Labels[corev1.LabelTopologyZone]}
		},
	})
}
