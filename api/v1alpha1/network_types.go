// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Built-in values of NetworkSpec.Plugin. Any other value names a CNI plugin or
// network that is installed on the node.
const (
	PluginMacvlan    = "macvlan"
	PluginBridge     = "bridge"
	PluginVXLAN      = "vxlan"
	PluginIPVLAN     = "ipvlan"
	PluginHostDevice = "host-device"
)

// Delegated tells whether the node's own CNI plugins make the interfaces, by a
// configuration that is installed there or stands in PluginConfig.
func (s *NetworkSpec) Delegated() bool {
	switch s.Plugin {
	case PluginMacvlan, PluginBridge, PluginVXLAN, PluginIPVLAN, PluginHostDevice:
		return false
	}
	return true
}

// Reachability says who besides the pods on a Network reaches its addresses.
// +kubebuilder:validation:Enum=Isolated;Routed
type Reachability string

const (
	// ReachabilityIsolated means only the pods on the network; the default.
	ReachabilityIsolated Reachability = "Isolated"
	// ReachabilityRouted means every node that runs kube-proxy too, by the admin's promise.
	ReachabilityRouted Reachability = "Routed"
)

// ServiceProxy says where ClusterIPs of Services over the network are served.
// +kubebuilder:validation:Enum=None;InPod
type ServiceProxy string

const (
	// ServiceProxyNone means by kube-proxy, if the network is Routed; the default.
	ServiceProxyNone ServiceProxy = "None"
	// ServiceProxyInPod means inside each pod that is on the network, by rules in
	// the pod's own network namespace; for Isolated networks.
	ServiceProxyInPod ServiceProxy = "InPod"
)

// ConflictDetection says whether an address is looked for on the physical
// network before a pod gets it.
// +kubebuilder:validation:Enum=None;Probe
type ConflictDetection string

const (
	// ConflictDetectionNone trusts that the subnet is the cluster's alone; the default.
	ConflictDetectionNone ConflictDetection = "None"
	// ConflictDetectionProbe asks by ARP and neighbour discovery whether another
	// host has the address; a pod then starts about half a second later.
	ConflictDetectionProbe ConflictDetection = "Probe"
)

// CIDR is an IPv4 or IPv6 prefix in canonical text without host bits.
// +kubebuilder:validation:MaxLength=43
// +kubebuilder:validation:XValidation:rule="isCIDR(self)",message="must be a CIDR, such as 10.10.0.0/16 or fd00:10:10::/64"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self) == cidr(self).masked()",message="has host bits set: write the prefix's first address, such as 10.10.0.0/16"
type CIDR string

// IP is an IPv4 or IPv6 address in text.
// +kubebuilder:validation:MaxLength=39
// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an IP address, such as 10.10.0.1 or fd00:10:10::1"
type IP string

// IPRange is a CIDR, one address, or first-last (both included).
// +kubebuilder:validation:MaxLength=79
// +kubebuilder:validation:XValidation:rule="isCIDR(self) || isIP(self) || (self.split('-').size() == 2 && self.split('-').all(a, isIP(a)))",message="must be a CIDR, an IP address, or a range first-last such as 10.10.0.1-10.10.0.9"
type IPRange string

// Route is one route that every interface on a Network gets.
type Route struct {
	// to is the destination; 0.0.0.0/0 and ::/0 are refused, see the pod's defaultRoute.
	// +required
	// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self).prefixLength() > 0",message="a default route is asked for by the pod (defaultRoute: true), not by the Network"
	To CIDR `json:"to"`
	// via is the next hop; absent means on-link.
	// +optional
	Via IP `json:"via,omitempty"`
}

// SysctlName is net.ipv4.conf.IFNAME.x, net.ipv6.conf.IFNAME.x, or the same with
// neigh; the word IFNAME stands for the interface's name in the pod.
// +kubebuilder:validation:MaxLength=64
// +kubebuilder:validation:Pattern=`^net\.ipv[46]\.(conf|neigh)\.IFNAME\.[a-z0-9_]+$`
type SysctlName string

// Sysctl is a kernel setting of one interface, in the pod's own namespace.
type Sysctl struct {
	// name of the setting.
	// +required
	Name SysctlName `json:"name"`
	// value as it is written into /proc/sys.
	// +required
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^[-0-9a-z:]+$`
	Value string `json:"value"`
}

// DNS is handed to the CNI result; Kubernetes itself writes a pod's resolv.conf.
type DNS struct {
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=3
	Nameservers []IP `json:"nameservers,omitempty"`
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=253
	Search []string `json:"search,omitempty"`
}

// NetworkSpec defines a logical network. Written by users only.
//
// Whoever may write it configures interfaces on nodes: treat the right to
// write Networks as root on every node.
//
// +kubebuilder:validation:XValidation:rule="has(self.subnet) || !(self.plugin in ['macvlan','bridge','vxlan','ipvlan','host-device'])",message="subnet is required: only a delegated plugin that brings its own IPAM may go without"
// +kubebuilder:validation:XValidation:rule="!has(self.subnet6) || !has(self.subnet) || !isCIDR(self.subnet) || cidr(self.subnet).ip().family() == 4",message="subnet6 stands beside an IPv4 subnet; write an IPv6-only network's prefix into subnet alone"
// +kubebuilder:validation:XValidation:rule="!has(self.subnet6) || has(self.subnet)",message="subnet6 needs a subnet beside it: an IPv6 address is subnet6 plus the 32 bits of the IPv4 address"
// +kubebuilder:validation:XValidation:rule="!has(self.subnet6) || !isCIDR(self.subnet6) || (cidr(self.subnet6).ip().family() == 6 && cidr(self.subnet6).prefixLength() <= 96)",message="subnet6 must be an IPv6 prefix of at most /96, such as fd00:10:10::/64"
// +kubebuilder:validation:XValidation:rule="!has(self.gateway) || !has(self.subnet) || !isIP(self.gateway) || !isCIDR(self.subnet) || cidr(self.subnet).containsIP(self.gateway) || (has(self.additionalSubnets) && self.additionalSubnets.exists(s, isCIDR(s) && cidr(s).containsIP(self.gateway)))",message="gateway must lie in subnet"
// +kubebuilder:validation:XValidation:rule="!has(self.gateway6) || (has(self.subnet6) && (!isIP(self.gateway6) || !isCIDR(self.subnet6) || cidr(self.subnet6).containsIP(self.gateway6)))",message="gateway6 must lie in subnet6"
// +kubebuilder:validation:XValidation:rule="!has(self.additionalSubnets) || !has(self.subnet) || !isCIDR(self.subnet) || self.additionalSubnets.all(s, !isCIDR(s) || cidr(s).ip().family() == cidr(self.subnet).ip().family())",message="additionalSubnets must be of the same IP family as subnet"
// +kubebuilder:validation:XValidation:rule="!has(self.additionalSubnets) || !has(self.subnet) || !isCIDR(self.subnet) || self.additionalSubnets.all(s, !isCIDR(s) || !(cidr(self.subnet).containsCIDR(s) || cidr(s).containsCIDR(self.subnet)))",message="additionalSubnets must not overlap subnet"
// +kubebuilder:validation:XValidation:rule="!has(self.additionalSubnets) || self.additionalSubnets.all(a, !isCIDR(a) || self.additionalSubnets.exists_one(b, isCIDR(b) && cidr(a).containsCIDR(b)))",message="additionalSubnets must not overlap each other"
// +kubebuilder:validation:XValidation:rule="!has(self.blockSize) || !has(self.subnet) || !isCIDR(self.subnet) || (cidr(self.subnet).ip().family() == 4 ? 32 : 128) - cidr(self.subnet).prefixLength() >= 12 || self.blockSize <= [1,2,4,8,16,32,64,128,256,512,1024,2048][(cidr(self.subnet).ip().family() == 4 ? 32 : 128) - cidr(self.subnet).prefixLength()]",message="blockSize must not be larger than subnet"
// +kubebuilder:validation:XValidation:rule="!has(self.staticRange) || (has(self.subnet) && (!isCIDR(self.staticRange) || !isCIDR(self.subnet) || cidr(self.subnet).containsCIDR(self.staticRange)))",message="staticRange must lie in subnet"
// +kubebuilder:validation:XValidation:rule="!has(self.subnet) || !isCIDR(self.subnet) || (cidr(self.subnet).prefixLength() <= (cidr(self.subnet).ip().family() == 4 ? 30 : 126) && cidr(self.subnet).prefixLength() >= 8)",message="subnet must be a prefix from /8 to /30 (IPv6: /126)"
// +kubebuilder:validation:XValidation:rule="!has(self.mtu) || self.mtu >= 1280 || !(has(self.subnet6) || (has(self.subnet) && isCIDR(self.subnet) && cidr(self.subnet).ip().family() == 6))",message="mtu must be at least 1280 where IPv6 is used (RFC 8200)"
// +kubebuilder:validation:XValidation:rule="!has(self.serviceProxy) || self.serviceProxy == 'None' || !has(self.reachability) || self.reachability == 'Isolated'",message="serviceProxy InPod is for Isolated networks: kube-proxy serves the ClusterIPs of Routed ones"
// +kubebuilder:validation:XValidation:rule="self.physicalNet == oldSelf.physicalNet",message="physicalNet is immutable: make a new Network"
// +kubebuilder:validation:XValidation:rule="self.plugin == oldSelf.plugin",message="plugin is immutable: make a new Network"
// +kubebuilder:validation:XValidation:rule="has(self.subnet) == has(oldSelf.subnet) && (!has(self.subnet) || self.subnet == oldSelf.subnet)",message="subnet is immutable, and can neither be added nor removed: grow the Network with additionalSubnets, or make a new one"
// +kubebuilder:validation:XValidation:rule="has(self.subnet6) == has(oldSelf.subnet6) && (!has(self.subnet6) || self.subnet6 == oldSelf.subnet6)",message="subnet6 is immutable, and can neither be added nor removed: make a new Network"
// +kubebuilder:validation:XValidation:rule="has(self.blockSize) == has(oldSelf.blockSize) && (!has(self.blockSize) || self.blockSize == oldSelf.blockSize)",message="blockSize is immutable, and can neither be added nor removed"
// +kubebuilder:validation:XValidation:rule="has(self.vlan) == has(oldSelf.vlan) && (!has(self.vlan) || self.vlan == oldSelf.vlan)",message="vlan is immutable, and can neither be added nor removed: make a new Network"
// +kubebuilder:validation:XValidation:rule="has(self.staticRange) == has(oldSelf.staticRange) && (!has(self.staticRange) || self.staticRange == oldSelf.staticRange)",message="staticRange is immutable, and can neither be added nor removed"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.additionalSubnets) || (has(self.additionalSubnets) && oldSelf.additionalSubnets.all(s, s in self.additionalSubnets))",message="additionalSubnets may only grow: addresses of a removed subnet could still be in use"
type NetworkSpec struct {
	// physicalNet names the PhysicalNetwork whose NICs carry this network. Immutable.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	PhysicalNet string `json:"physicalNet"`

	// plugin is macvlan, bridge, vxlan, ipvlan or host-device, or the name of a
	// CNI plugin or network installed on the node (Flannel, Canal). Immutable.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Plugin string `json:"plugin"`

	// subnet is the IPv4 or IPv6 prefix of the network. Immutable.
	// +optional
	Subnet CIDR `json:"subnet,omitempty"`

	// subnet6 makes the network dual stack: an interface's IPv6 address is this
	// prefix plus the 32 bits of its IPv4 address. Immutable.
	// +optional
	Subnet6 CIDR `json:"subnet6,omitempty"`

	// additionalSubnets add addresses of subnet's family. Append only.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	AdditionalSubnets []CIDR `json:"additionalSubnets,omitempty"`

	// gateway is the network's router; never given to a pod.
	// +optional
	Gateway IP `json:"gateway,omitempty"`

	// gateway6 is the IPv6 router in subnet6.
	// +optional
	Gateway6 IP `json:"gateway6,omitempty"`

	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Routes []Route `json:"routes,omitempty"`

	// excludeRanges are addresses that are never given out.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	ExcludeRanges []IPRange `json:"excludeRanges,omitempty"`

	// staticRange is never carved into blocks: fixed addresses come from it. Immutable.
	// +optional
	StaticRange CIDR `json:"staticRange,omitempty"`

	// blockSize is the number of addresses in one IPBlock, a power of two.
	// Absent means max(8, min(64, size of subnet / 16)). Immutable.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self in [4,8,16,32,64,128,256,512,1024,2048,4096]",message="must be a power of two from 4 to 4096"
	BlockSize int32 `json:"blockSize,omitempty"`

	// vlan is the 802.1Q tag on the physical network, of macvlan, ipvlan and
	// bridge. Immutable.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4094
	VLAN int32 `json:"vlan,omitempty"`

	// mtu of the pods' interfaces; absent means the NIC's.
	// +optional
	// +kubebuilder:validation:Minimum=576
	// +kubebuilder:validation:Maximum=65535
	MTU int32 `json:"mtu,omitempty"`

	// sysctls are settings of every interface on the network, made before it goes
	// up. Pods that run keep theirs when this changes.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	Sysctls []Sysctl `json:"sysctls,omitempty"`

	// allowedSysctls are the names, in the form of sysctls, of the settings that
	// a pod may make of its own interface; absent means none.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	AllowedSysctls []SysctlName `json:"allowedSysctls,omitempty"`

	// +optional
	DNS *DNS `json:"dns,omitempty"`

	// reachability Routed is the admin's promise that every node that runs
	// kube-proxy reaches these addresses.
	// +optional
	// +kubebuilder:default=Isolated
	Reachability Reachability `json:"reachability,omitempty"`

	// serviceProxy InPod has pods on the network reach the ClusterIPs of Services
	// over it, of their endpoints on it. It is for Isolated networks: kube-proxy
	// serves the ClusterIPs of Routed ones, to all pods.
	// +optional
	// +kubebuilder:default=None
	ServiceProxy ServiceProxy `json:"serviceProxy,omitempty"`

	// conflictDetection Probe has nodes ask, before a pod gets an address, whether
	// a host outside the cluster has it. Such an address is put aside for some
	// minutes, and the pod gets another.
	// +optional
	// +kubebuilder:default=None
	ConflictDetection ConflictDetection `json:"conflictDetection,omitempty"`

	// namespaceSelector selects the namespaces whose pods may attach; absent means all.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// pluginConfig holds options of the plugin: mode of macvlan (bridge, vepa,
	// private, passthru) and ipvlan (l2, l3), isolated and spoofCheck of bridge.
	// It is merged into the CNI configuration of a delegated plugin that is
	// installed on the node; with a type (or plugins) it is complete, and needs no
	// configuration on the node.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	PluginConfig *apiextensionsv1.JSON `json:"pluginConfig,omitempty"`
}

// AddressCounts are refreshed at most every 30 s.
type AddressCounts struct {
	// capacity is the number of addresses that pods could have in all.
	// +optional
	Capacity int64 `json:"capacity"`
	// claimed is the part of capacity in blocks that nodes hold.
	// +optional
	Claimed int64 `json:"claimed"`
	// used is what living pods ask for, plus what nodes hold for pods that are gone.
	// +optional
	Used int64 `json:"used"`
}

// NodeCounts counts the nodes behind a network.
type NodeCounts struct {
	// ready nodes back it with a NIC that is up and an agent that serves.
	// +optional
	Ready int32 `json:"ready"`
	// total nodes map a NIC to it.
	// +optional
	Total int32 `json:"total"`
}

// NetworkStatus is written by netplane-controller only.
type NetworkStatus struct {
	// observedGeneration is the spec's generation that conditions speak of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	Nodes NodeCounts `json:"nodes"`
	// +optional
	Addresses AddressCounts `json:"addresses"`
}

// Network is a logical network: a subnet on a physical network and the plugin
// that makes its interfaces.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=netw,categories=netplane
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Physical",type=string,JSONPath=`.spec.physicalNet`
// +kubebuilder:printcolumn:name="Plugin",type=string,JSONPath=`.spec.plugin`
// +kubebuilder:printcolumn:name="Subnet",type=string,JSONPath=`.spec.subnet`
// +kubebuilder:printcolumn:name="Subnet6",type=string,JSONPath=`.spec.subnet6`,priority=1
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes.ready`
// +kubebuilder:printcolumn:name="Used",type=integer,JSONPath=`.status.addresses.used`
// +kubebuilder:printcolumn:name="Claimed",type=integer,JSONPath=`.status.addresses.claimed`
// +kubebuilder:printcolumn:name="Capacity",type=integer,JSONPath=`.status.addresses.capacity`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.status.conditions[?(@.type=="AddressesAvailable")].reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",message="metadata.name must be a DNS label: lower case letters, digits and '-', at most 63, no dots"
// +kubebuilder:validation:XValidation:rule="self.metadata.name != 'default'",message="metadata.name 'default' stands for the cluster's own network"
type Network struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec NetworkSpec `json:"spec"`
	// +optional
	Status NetworkStatus `json:"status,omitempty"`
}

// NetworkList is a list of Networks.
//
// +kubebuilder:object:root=true
type NetworkList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Network `json:"items"`
}
