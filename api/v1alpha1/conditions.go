// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Condition types.
const (
	// ConditionReady on a Network: pods may be placed on it. On a
	// PhysicalNetwork: at least one node backs it with a NIC that is up.
	ConditionReady = "Ready"

	// ConditionTight on a Network: fewer unclaimed blocks are left than nodes
	// that back it, so that blocks are claimed on demand only.
	ConditionTight = "Tight"

	// ConditionAddressesAvailable on a Network: not all of its addresses are in
	// use. Its reason tells beforehand that they run low.
	ConditionAddressesAvailable = "AddressesAvailable"

	// ConditionAgentReady on a NodeNetwork: the node's agent serves. A node
	// whose agent is not ready takes no pods with networks. Written by the
	// controller from the readiness of the agent's pod.
	ConditionAgentReady = "AgentReady"

	// ConditionInventoryReady on a NodeNetwork: the agent could read its map
	// file and the node's links. Written by the agent.
	ConditionInventoryReady = "InventoryReady"

	// ConditionBound on an IPClaim: a pod may use the address.
	ConditionBound = "Bound"

	// ConditionBlocksConsistent on a NodeNetwork: False while addresses are in
	// use here in a block that another node has, too; see status.conflicts.
	// Written by the agent.
	ConditionBlocksConsistent = "BlocksConsistent"

	// ConditionEndpointsByNetwork on a Service: whether its slices follow its
	// netplane.io/networks annotation.
	ConditionEndpointsByNetwork = "netplane.io/EndpointsByNetwork"

	// ConditionNamesByNetwork on a Service: whether each of its networks has a
	// DNS name of its own, by a child Service <service>-<network>.
	ConditionNamesByNetwork = "netplane.io/NamesByNetwork"
)

// Reasons of a Network's Ready condition.
const (
	// ReasonReady: nothing stands against it.
	ReasonReady = "Ready"
	// ReasonUnknownPhysicalNetwork: spec.physicalNet names no PhysicalNetwork; create it.
	ReasonUnknownPhysicalNetwork = "UnknownPhysicalNetwork"
	// ReasonSubnetOverlap: an older Network on the same physical network and
	// VLAN has some of its addresses; choose another subnet or VLAN.
	ReasonSubnetOverlap = "SubnetOverlap"
	// ReasonNoNode: no node maps a NIC to the physical network; map one. While
	// NICs are mapped but down, the Network stays Ready with nodes.ready 0, so
	// that the scheduler can name each node's reason.
	ReasonNoNode = "NoNode"
	// ReasonInvalidSpec: the spec passed the CRD's rules but cannot be carved;
	// the message says why.
	ReasonInvalidSpec = "InvalidSpec"
	// ReasonTerminating: the Network is being deleted and waits for its pods.
	ReasonTerminating = "Terminating"
	// ReasonVNIConflict: an older Network of plugin vxlan has the VNI on the same
	// UDP port; name another with spec.pluginConfig.vni.
	ReasonVNIConflict = "VNIConflict"
	// ReasonUnsupportedPlugin: spec.plugin names nothing that this release runs.
	ReasonUnsupportedPlugin = "UnsupportedPlugin"
)

// Reasons of a Network's Tight condition.
const (
	// ReasonBlocksLeft: every node that backs the network can claim another block.
	ReasonBlocksLeft = "BlocksLeft"
	// ReasonFewBlocksLeft: there are fewer unclaimed blocks than nodes.
	ReasonFewBlocksLeft = "FewBlocksLeft"
)

// Reasons of a Network's AddressesAvailable condition.
const (
	// ReasonAddressesLeft (True): there are enough addresses for now.
	ReasonAddressesLeft = "AddressesLeft"
	// ReasonAddressesRunningLow (True): 90 % of the addresses are in use, or
	// were and more than 80 % still are; grow the Network before none is left.
	ReasonAddressesRunningLow = "AddressesRunningLow"
	// ReasonAddressesExhausted (False): all addresses are in use; grow the
	// Network with additionalSubnets, or delete pods.
	ReasonAddressesExhausted = "AddressesExhausted"
)

// Reasons of a PhysicalNetwork's Ready condition.
const (
	// ReasonNodesReady: at least one node backs it.
	ReasonNodesReady = "NodesReady"
	// ReasonNoInterface: no node maps a NIC to it; see the node map file or spec.nodeInterfaces.
	ReasonNoInterface = "NoInterface"
	// ReasonInterfacesDown: nodes map NICs to it, but none is up.
	ReasonInterfacesDown = "InterfacesDown"
)

// Reasons of a NodeNetwork's conditions and of its physicalNetworks entries.
const (
	// ReasonAgentPodReady: the agent's pod is Ready.
	ReasonAgentPodReady = "AgentPodReady"
	// ReasonAgentPodNotReady: the agent's pod exists but is not Ready; read its log.
	ReasonAgentPodNotReady = "AgentPodNotReady"
	// ReasonNoAgentPod: no agent pod runs on the node.
	ReasonNoAgentPod = "NoAgentPod"
	// ReasonInventoryRead: map file and links were read.
	ReasonInventoryRead = "InventoryRead"
	// ReasonInvalidMap: the map file has an error; the message names line and cure.
	ReasonInvalidMap = "InvalidMap"
	// ReasonInterfaceUp: the NIC is there and up.
	ReasonInterfaceUp = "InterfaceUp"
	// ReasonInterfaceInPod: pods have the NICs for themselves (plugin host-device).
	ReasonInterfaceInPod = "InterfaceInPod"
	// ReasonInterfaceDown: the NIC is there, but down or without carrier.
	ReasonInterfaceDown = "InterfaceDown"
	// ReasonInterfaceNotFound: the mapping names a NIC that the node lacks.
	ReasonInterfaceNotFound = "InterfaceNotFound"
)

// Reasons of a NodeNetwork's BlocksConsistent condition.
const (
	// ReasonNoBlockConflict: no other node has a block in which addresses are
	// in use here.
	ReasonNoBlockConflict = "NoBlockConflict"
	// ReasonBlockConflict: pods of two nodes may have the same addresses, after
	// a restored etcd or a block that was removed by force. Delete the pods that
	// the message names, or those of the other node.
	ReasonBlockConflict = "BlockConflict"
)

// Reasons why a node refuses a Network whose physical network it backs
// (NodeNetwork status.refused).
const (
	// ReasonPluginConflict: a NIC cannot be a macvlan parent and a bridge port
	// at once, nor be shared and a pod's alone; an older Network decided.
	ReasonPluginConflict = "PluginConflict"
	// ReasonHostInterface: the NIC carries the host's addresses or default
	// route, so it is never enslaved to a bridge, nor moved into a pod.
	ReasonHostInterface = "HostInterface"
	// ReasonMTUExceedsInterface: spec.mtu is larger than the NIC's.
	ReasonMTUExceedsInterface = "MTUExceedsInterface"
	// ReasonPluginNotInstalled: the node has no CNI configuration of the network
	// or plugin that spec.plugin names, or lacks a plugin that it needs.
	ReasonPluginNotInstalled = "PluginNotInstalled"
	// ReasonPluginUnavailable: the node's kernel lacks the plugin's link kind.
	ReasonPluginUnavailable = "PluginUnavailable"
	// ReasonUninstalled: the node has its own CNI configuration back, so that new
	// pods would start without their networks; install netplane there again.
	ReasonUninstalled = "Uninstalled"
	// ReasonBypassed: the node's runtime takes another CNI configuration, whose name
	// sorts before netplane's, so that pods would start without their networks.
	ReasonBypassed = "Bypassed"
	// ReasonNoTunnelAddress: the NIC has no address that a vxlan tunnel could end
	// at; give it one, or switch IPv6 on.
	ReasonNoTunnelAddress = "NoTunnelAddress"
)

// Reasons of an IPClaim's Bound condition.
const (
	// ReasonBound: the pod that status names may use the address.
	ReasonBound = "Bound"
	// ReasonOwnerAbsent: no pod of the owner is there; the address is kept for it.
	ReasonOwnerAbsent = "OwnerAbsent"
	// ReasonFormerPodRemains: a pod that had the address is there still, or its
	// node has not given the address back.
	ReasonFormerPodRemains = "FormerPodRemains"
	// ReasonFormerNodeUnknown: the node of the former pod does not answer, so
	// that the pod may live; repair the node, delete it, or fence it with the
	// taint node.kubernetes.io/out-of-service.
	ReasonFormerNodeUnknown = "FormerNodeUnknown"
	// ReasonInvalidAddress: the address cannot be given to a pod of its Network;
	// the message says why.
	ReasonInvalidAddress = "InvalidAddress"
	// ReasonNetworkAbsent: there is no Network of the name and UID that spec names.
	ReasonNetworkAbsent = "NetworkAbsent"
)

// Reasons of a Service's EndpointsByNetwork condition.
const (
	// ReasonEndpointsPublished: slices follow the annotation.
	ReasonEndpointsPublished = "EndpointsPublished"
	// ReasonInvalidAnnotation: netplane.io/networks on the Service is malformed.
	ReasonInvalidAnnotation = "InvalidAnnotation"
	// ReasonUnknownNetwork: the annotation names a Network that does not exist.
	ReasonUnknownNetwork = "UnknownNetwork"
	// ReasonSelectorKeyMissing: the selector lacks netplane.io/endpoints: by-network.
	ReasonSelectorKeyMissing = "SelectorKeyMissing"
	// ReasonSelectorKeyInvalid: the entry has another value. It keeps Kubernetes'
	// own controller away all the same, so that our endpoints are published.
	ReasonSelectorKeyInvalid = "SelectorKeyInvalid"
	// ReasonAwaitingSelectorKey (Unknown): the selector lacks that entry, and a
	// Service that Kubernetes itself published has got the annotation: our
	// endpoints stand beside the built-in ones, for a while.
	ReasonAwaitingSelectorKey = "AwaitingSelectorKey"
	// ReasonHandingBack (Unknown): the selector's entry was removed; our
	// endpoints stay until the built-in ones are ready.
	ReasonHandingBack = "HandingBack"
	// ReasonAnnotationMissing: the selector has that entry, but there is no
	// annotation; the endpoints are those of the cluster network.
	ReasonAnnotationMissing = "AnnotationMissing"
	// ReasonSelectorEmpty: the selector has nothing besides that entry, so it selects no pod.
	ReasonSelectorEmpty = "SelectorEmpty"
	// ReasonNoSharedFamily: the Service and a network share no IP family.
	ReasonNoSharedFamily = "NoSharedFamily"
	// ReasonIsolatedClusterIP: a ClusterIP Service names only isolated
	// networks; make it headless.
	ReasonIsolatedClusterIP = "IsolatedClusterIP"
	// ReasonEndpointsIncomplete: slices could not be written for a while; the
	// message has the errors.
	ReasonEndpointsIncomplete = "EndpointsIncomplete"
)

// Reasons of a Service's NamesByNetwork condition.
const (
	// ReasonNamesPublished: there is a child Service for each network.
	ReasonNamesPublished = "NamesPublished"
	// ReasonServiceNameTaken: a child's name is another Service's, which is left alone.
	ReasonServiceNameTaken = "ServiceNameTaken"
	// ReasonServiceNameTooLong: a child's name would have more than 63 characters.
	ReasonServiceNameTooLong = "ServiceNameTooLong"
	// ReasonServiceNameRefused: the API server refused to create or change a
	// child, for a quota or a policy; the message has its words.
	ReasonServiceNameRefused = "ServiceNameRefused"
)

// Reasons of events.
const (
	// EventAddressWithheld on a pod: an address that its network-status claims
	// lies in no block of its node and was not published.
	EventAddressWithheld = "AddressWithheld"
	// EventFixedAddressTaken on a pod: the fixed address that it asks for belongs
	// to another identity.
	EventFixedAddressTaken = "FixedAddressTaken"
	// EventFixedAddressInvalid on a pod: the fixed address that it asks for is
	// none that its Network gives.
	EventFixedAddressInvalid = "FixedAddressInvalid"
	// EventNoFixedAddressLeft on a pod: every address of the Network's
	// staticRange belongs to somebody.
	EventNoFixedAddressLeft = "NoFixedAddressLeft"
	// EventBlockConflict on a Network: addresses are in use on a node in a block
	// that another node has; see that node's NodeNetwork.
	EventBlockConflict = "BlockConflict"
	// EventAddressTaken on a pod: a host outside the cluster has an address that
	// the pod was to get.
	EventAddressTaken = "AddressTaken"
	// EventHotPlugged on a pod: its interfaces were changed as its annotation was.
	EventHotPlugged = "HotPlugged"
	// EventHotPlugRefused on a pod: its annotation was changed, and an interface
	// cannot follow, or not yet; the message says why.
	EventHotPlugRefused = "HotPlugRefused"
	// EventBlockReleased on a Network: a block of a Node that is gone was freed.
	EventBlockReleased = "BlockReleased"
)
