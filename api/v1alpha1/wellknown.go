// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Keys of annotations, labels and finalizers. Sources: the Kubernetes
// well-known labels and the NPWG multi-network specification v1.3.
const (
	// AnnotationNetworks names the networks of a pod (see api/podnetworks for
	// its two forms) or of a Service (a comma separated list, or a YAML map
	// from port name to networks).
	AnnotationNetworks = "netplane.io/networks"

	// AnnotationNetworkStatus is the NPWG result annotation: one JSON entry
	// per interface. Only node agents may write it.
	AnnotationNetworkStatus = "k8s.v1.cni.cncf.io/network-status"

	// AnnotationNPWGNetworks asks for interfaces by NetworkAttachmentDefinitions
	// (NPWG v1.3), and AnnotationMultusDefaultNetwork for one in the place of the
	// cluster's network.
	AnnotationNPWGNetworks         = "k8s.v1.cni.cncf.io/networks"
	AnnotationMultusDefaultNetwork = "v1.multus-cni.io/default-network"

	// AnnotationNetworkStatusSandbox is the ID of the pod sandbox that
	// AnnotationNetworkStatus describes; a status of an older sandbox is stale.
	AnnotationNetworkStatusSandbox = "netplane.io/network-status-sandbox"

	// AnnotationAttached counts the interfaces that a pod has, by Network, such
	// as data=2,management=1 (see podnetworks.FormatAttached). Beside
	// AnnotationNetworks, which may change while the pod runs, it tells what the
	// pod takes. Only node agents may write it.
	AnnotationAttached = "netplane.io/attached-networks"

	// AnnotationContestedBy on an IPBlock names a node on which addresses of the
	// block are in use although the block is not its own (after a restored
	// etcd). The block's node hands out nothing more of it. Written by the
	// controller.
	AnnotationContestedBy = "netplane.io/contested-by"

	// LabelPhysicalPrefix + physical network name = NIC, on Nodes.
	LabelPhysicalPrefix = "physical.netplane.io/"

	// LabelNetwork names the Network on EndpointSlices and child Services.
	LabelNetwork = "netplane.io/network"

	// LabelService names the parent on child Services.
	LabelService = "netplane.io/service"

	// SelectorEndpointsKey and SelectorEndpointsByNetwork are the extra
	// selector entry of a Service over networks: no pod has it, so that
	// kube-controller-manager selects nothing; our controller strips it.
	SelectorEndpointsKey       = "netplane.io/endpoints"
	SelectorEndpointsByNetwork = "by-network"

	// EndpointSliceManagedBy is the endpointslice.kubernetes.io/managed-by
	// value of the slices that we own.
	EndpointSliceManagedBy = "netplane.io"

	// IsolatedServiceProxyName is the service.kubernetes.io/service-proxy-name
	// value on slices of networks that kube-proxy's nodes cannot reach. It hides them
	// from kube-proxies that know no other label; those of 1.37 go by
	// service.kubernetes.io/headless, which these slices have too.
	IsolatedServiceProxyName = "netplane.io"

	// FinalizerIPBlock holds an IPBlock until nothing lives in it.
	FinalizerIPBlock = "netplane.io/ipblock"

	// FinalizerIPClaim holds an IPClaim until no pod uses its address.
	FinalizerIPClaim = "netplane.io/ipclaim"

	// FinalizerNetwork holds a Network until no IPBlock of it is left.
	FinalizerNetwork = "netplane.io/network"

	// DefaultNetworkName stands for the cluster's own network in a Service's
	// list of networks; no Network may have this name.
	DefaultNetworkName = "default"

	// DefaultSchedulerName is the profile that places pods by network.
	DefaultSchedulerName = "netplane-scheduler"

	// AgentAppLabel is the app.kubernetes.io/name of the node agent's pods.
	AgentAppLabel = "netplane-agent"

	// SystemNamespace is where the shipped manifests install netplane.
	SystemNamespace = "netplane-system"
)

// Field owners for server-side apply, and names of the event sources.
const (
	FieldOwnerAgent      = "netplane-agent"
	FieldOwnerController = "netplane-controller"
)

// Selectable fields of IPBlock (KEP-4358).
const (
	FieldIPBlockNodeName = "spec.nodeName"
	FieldIPBlockNetwork  = "spec.network"
)

// Selectable fields of IPClaim.
const (
	FieldIPClaimNetwork  = "spec.network"
	FieldIPClaimNodeName = "status.nodeName"
)
