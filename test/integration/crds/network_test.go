// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package crds

import (
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// network is a Network that nothing may refuse, changed by edit.
func network(name string, edit func(*v1alpha1.NetworkSpec)) *v1alpha1.Network {
	n := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "phy-net0", Plugin: v1alpha1.PluginMacvlan, Subnet: "10.10.0.0/16"},
	}
	if edit != nil {
		edit(&n.Spec)
	}
	return n
}

// everything sets each field that an update may not change.
func everything(s *v1alpha1.NetworkSpec) {
	s.Subnet6 = "fd00:10:10::/64"
	s.BlockSize = 64
	s.VLAN = 100
	s.StaticRange = "10.10.254.0/24"
	s.AdditionalSubnets = []v1alpha1.CIDR{"10.11.0.0/16", "10.12.0.0/16"}
}

func TestNetworkCreate(t *testing.T) {
	const notCIDR = "must be a CIDR, such as 10.10.0.0/16 or fd00:10:10::/64"
	const hostBits = "has host bits set: write the prefix's first address, such as 10.10.0.0/16"
	const notIP = "must be an IP address, such as 10.10.0.1 or fd00:10:10::1"
	const notRange = "must be a CIDR, an IP address, or a range first-last such as 10.10.0.1-10.10.0.9"
	tests := []struct {
		name string
		edit func(*v1alpha1.NetworkSpec)
		want string
	}{
		{"the least", nil, ""},
		{"everything", func(s *v1alpha1.NetworkSpec) {
			everything(s)
			s.Gateway, s.Gateway6 = "10.10.0.1", "fd00:10:10::1"
			s.Routes = []v1alpha1.Route{{To: "10.0.0.0/8", Via: "10.10.0.1"}, {To: "192.168.0.0/16"}}
			s.ExcludeRanges = []v1alpha1.IPRange{"10.10.0.0/28", "10.10.1.1", "10.10.255.250-10.10.255.255", "fd00:10:10::1-fd00:10:10::9"}
			s.MTU = 1500
			s.Sysctls = []v1alpha1.Sysctl{{Name: "net.ipv4.conf.IFNAME.rp_filter", Value: "2"}, {Name: "net.ipv6.neigh.IFNAME.base_reachable_time_ms", Value: "60000"}}
			s.AllowedSysctls = []v1alpha1.SysctlName{"net.ipv4.conf.IFNAME.proxy_arp", "net.ipv6.neigh.IFNAME.mcast_solicit"}
			s.DNS = &v1alpha1.DNS{Nameservers: []v1alpha1.IP{"10.10.0.53"}, Search: []string{"example.org"}}
			s.Reachability = v1alpha1.ReachabilityRouted
			s.ConflictDetection = v1alpha1.ConflictDetectionProbe
			s.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"tenant": "a"}}
		}, ""},
		{"ClusterIPs in the pods", func(s *v1alpha1.NetworkSpec) { s.ServiceProxy = v1alpha1.ServiceProxyInPod }, ""},
		{"ClusterIPs in the pods of an isolated network", func(s *v1alpha1.NetworkSpec) {
			s.ServiceProxy, s.Reachability = v1alpha1.ServiceProxyInPod, v1alpha1.ReachabilityIsolated
		}, ""},
		{"ClusterIPs not in the pods of a routed network", func(s *v1alpha1.NetworkSpec) {
			s.ServiceProxy, s.Reachability = v1alpha1.ServiceProxyNone, v1alpha1.ReachabilityRouted
		}, ""},
		{"ClusterIPs in the pods of a routed network", func(s *v1alpha1.NetworkSpec) {
			s.ServiceProxy, s.Reachability = v1alpha1.ServiceProxyInPod, v1alpha1.ReachabilityRouted
		}, "serviceProxy InPod is for Isolated networks"},
		{"ClusterIPs somewhere else", func(s *v1alpha1.NetworkSpec) { s.ServiceProxy = "Node" }, "spec.serviceProxy"},
		{"a sysctl of all interfaces", func(s *v1alpha1.NetworkSpec) {
			s.Sysctls = []v1alpha1.Sysctl{{Name: "net.ipv4.conf.all.rp_filter", Value: "0"}}
		}, "spec.sysctls[0].name"},
		{"leave for a sysctl of all interfaces", func(s *v1alpha1.NetworkSpec) {
			s.AllowedSysctls = []v1alpha1.SysctlName{"net.ipv4.conf.all.rp_filter"}
		}, "spec.allowedSysctls[0]"},
		{"leave for a sysctl of the namespace", func(s *v1alpha1.NetworkSpec) {
			s.AllowedSysctls = []v1alpha1.SysctlName{"net.ipv4.ip_forward"}
		}, "spec.allowedSysctls[0]"},
		{"a sysctl of the namespace", func(s *v1alpha1.NetworkSpec) {
			s.Sysctls = []v1alpha1.Sysctl{{Name: "net.ipv4.ip_forward", Value: "1"}}
		}, "spec.sysctls[0].name"},
		{"a sysctl's name that leads elsewhere", func(s *v1alpha1.NetworkSpec) {
			s.Sysctls = []v1alpha1.Sysctl{{Name: "net.ipv4.conf.IFNAME.../all/rp_filter", Value: "1"}}
		}, "spec.sysctls[0].name"},
		{"a sysctl's value with a line break", func(s *v1alpha1.NetworkSpec) {
			s.Sysctls = []v1alpha1.Sysctl{{Name: "net.ipv4.conf.IFNAME.rp_filter", Value: "1\n2"}}
		}, "spec.sysctls[0].value"},
		{"IPv6 only", func(s *v1alpha1.NetworkSpec) { s.Subnet = "fd00:1::/64"; s.Gateway = "fd00:1::1" }, ""},
		{"delegated plugin without subnet", func(s *v1alpha1.NetworkSpec) {
			s.Plugin, s.Subnet = "Flannel", ""
			s.PluginConfig = &apiextensionsv1.JSON{Raw: []byte(`{"delegate":{"hairpinMode":true}}`)}
		}, ""},
		{"built-in plugin without subnet", func(s *v1alpha1.NetworkSpec) { s.Subnet = "" }, "subnet is required: only a delegated plugin that brings its own IPAM may go without"},
		{"no physical network", func(s *v1alpha1.NetworkSpec) { s.PhysicalNet = "" }, "spec.physicalNet"},
		{"no plugin", func(s *v1alpha1.NetworkSpec) { s.Plugin = "" }, "spec.plugin"},

		{"subnet is no CIDR", func(s *v1alpha1.NetworkSpec) { s.Subnet = "10.10.0.0" }, "spec.subnet: Invalid value: \"10.10.0.0\": " + notCIDR},
		{"subnet is an impossible CIDR", func(s *v1alpha1.NetworkSpec) { s.Subnet = "10.10.0.0/33" }, notCIDR},
		{"subnet with host bits", func(s *v1alpha1.NetworkSpec) { s.Subnet = "10.10.0.1/16" }, "spec.subnet: Invalid value: \"10.10.0.1/16\": " + hostBits},
		{"subnet6 with host bits", func(s *v1alpha1.NetworkSpec) { s.Subnet6 = "fd00::1/64" }, hostBits},
		{"subnet too small", func(s *v1alpha1.NetworkSpec) { s.Subnet = "10.10.0.0/31" }, "subnet must be a prefix from /8 to /30 (IPv6: /126)"},
		{"subnet too large", func(s *v1alpha1.NetworkSpec) { s.Subnet = "10.0.0.0/7" }, "subnet must be a prefix from /8 to /30 (IPv6: /126)"},
		{"smallest subnet", func(s *v1alpha1.NetworkSpec) { s.Subnet = "10.10.0.0/30" }, ""},
		{"smallest IPv6 subnet", func(s *v1alpha1.NetworkSpec) { s.Subnet = "fd00::/126" }, ""},

		{"subnet6 without subnet", func(s *v1alpha1.NetworkSpec) { s.Plugin, s.Subnet, s.Subnet6 = "Flannel", "", "fd00::/64" }, "subnet6 needs a subnet beside it"},
		{"subnet6 beside an IPv6 subnet", func(s *v1alpha1.NetworkSpec) { s.Subnet, s.Subnet6 = "fd00:1::/64", "fd00:2::/64" }, "subnet6 stands beside an IPv4 subnet"},
		{"subnet6 of IPv4", func(s *v1alpha1.NetworkSpec) { s.Subnet6 = "10.20.0.0/16" }, "subnet6 must be an IPv6 prefix of at most /96"},
		{"subnet6 too small for 32 bits", func(s *v1alpha1.NetworkSpec) { s.Subnet6 = "fd00::/97" }, "subnet6 must be an IPv6 prefix of at most /96"},
		{"smallest subnet6", func(s *v1alpha1.NetworkSpec) { s.Subnet6 = "fd00::/96" }, ""},

		{"gateway is no address", func(s *v1alpha1.NetworkSpec) { s.Gateway = "10.10.0.0/16" }, "spec.gateway: Invalid value: \"10.10.0.0/16\": " + notIP},
		{"gateway outside the subnet", func(s *v1alpha1.NetworkSpec) { s.Gateway = "10.11.0.1" }, "gateway must lie in subnet"},
		{"gateway of the other family", func(s *v1alpha1.NetworkSpec) { s.Gateway = "fd00::1" }, "gateway must lie in subnet"},
		{"gateway in an additional subnet", func(s *v1alpha1.NetworkSpec) {
			s.AdditionalSubnets, s.Gateway = []v1alpha1.CIDR{"10.11.0.0/16"}, "10.11.0.1"
		}, ""},
		{"gateway6 outside subnet6", func(s *v1alpha1.NetworkSpec) { s.Subnet6, s.Gateway6 = "fd00::/64", "fd01::1" }, "gateway6 must lie in subnet6"},
		{"gateway6 without subnet6", func(s *v1alpha1.NetworkSpec) { s.Gateway6 = "fd01::1" }, "gateway6 must lie in subnet6"},

		{"additional subnet of the other family", func(s *v1alpha1.NetworkSpec) { s.AdditionalSubnets = []v1alpha1.CIDR{"fd00::/64"} }, "additionalSubnets must be of the same IP family as subnet"},
		{"additional subnet in the subnet", func(s *v1alpha1.NetworkSpec) { s.AdditionalSubnets = []v1alpha1.CIDR{"10.10.1.0/24"} }, "additionalSubnets must not overlap subnet"},
		{"additional subnet around the subnet", func(s *v1alpha1.NetworkSpec) { s.AdditionalSubnets = []v1alpha1.CIDR{"10.0.0.0/8"} }, "additionalSubnets must not overlap subnet"},
		{"additional subnets overlap each other", func(s *v1alpha1.NetworkSpec) {
			s.AdditionalSubnets = []v1alpha1.CIDR{"10.11.0.0/16", "10.11.1.0/24"}
		}, "additionalSubnets must not overlap each other"},
		{"additional subnet twice", func(s *v1alpha1.NetworkSpec) {
			s.AdditionalSubnets = []v1alpha1.CIDR{"10.11.0.0/16", "10.11.0.0/16"}
		}, "additionalSubnets must not overlap each other"},
		{"additional subnet is no CIDR", func(s *v1alpha1.NetworkSpec) { s.AdditionalSubnets = []v1alpha1.CIDR{"x"} }, "spec.additionalSubnets[0]: Invalid value: \"x\": " + notCIDR},

		{"static range outside", func(s *v1alpha1.NetworkSpec) { s.StaticRange = "10.11.0.0/24" }, "staticRange must lie in subnet"},
		{"static range inside", func(s *v1alpha1.NetworkSpec) { s.StaticRange = "10.10.254.0/24" }, ""},

		{"route to everywhere", func(s *v1alpha1.NetworkSpec) { s.Routes = []v1alpha1.Route{{To: "0.0.0.0/0"}} }, "a default route is asked for by the pod (defaultRoute: true), not by the Network"},
		{"route to no CIDR", func(s *v1alpha1.NetworkSpec) { s.Routes = []v1alpha1.Route{{To: "10.0.0.1"}} }, "spec.routes[0].to: Invalid value: \"10.0.0.1\": " + notCIDR},
		{"route via no address", func(s *v1alpha1.NetworkSpec) { s.Routes = []v1alpha1.Route{{To: "10.0.0.0/8", Via: "r1"}} }, "spec.routes[0].via: Invalid value: \"r1\": " + notIP},

		{"excluded nonsense", func(s *v1alpha1.NetworkSpec) { s.ExcludeRanges = []v1alpha1.IPRange{"10.10.0.1-"} }, notRange},
		{"excluded names", func(s *v1alpha1.NetworkSpec) { s.ExcludeRanges = []v1alpha1.IPRange{"a-b"} }, notRange},

		{"block size no power of two", func(s *v1alpha1.NetworkSpec) { s.BlockSize = 48 }, "must be a power of two from 4 to 4096"},
		{"block larger than the subnet", func(s *v1alpha1.NetworkSpec) { s.Subnet, s.BlockSize = "10.10.0.0/28", 32 }, "blockSize must not be larger than subnet"},
		{"block as large as the subnet", func(s *v1alpha1.NetworkSpec) { s.Subnet, s.BlockSize = "10.10.0.0/28", 16 }, ""},
		{"VLAN too large", func(s *v1alpha1.NetworkSpec) { s.VLAN = 4095 }, "spec.vlan"},
		{"MTU too small for IPv4", func(s *v1alpha1.NetworkSpec) { s.MTU = 575 }, "spec.mtu"},
		{"MTU too small for IPv6", func(s *v1alpha1.NetworkSpec) { s.Subnet6, s.MTU = "fd00::/64", 1279 }, "mtu must be at least 1280 where IPv6 is used (RFC 8200)"},
		{"least MTU for IPv6", func(s *v1alpha1.NetworkSpec) { s.Subnet6, s.MTU = "fd00::/64", 1280 }, ""},
		{"no conflict detection", func(s *v1alpha1.NetworkSpec) { s.ConflictDetection = v1alpha1.ConflictDetectionNone }, ""},
		{"unknown conflict detection", func(s *v1alpha1.NetworkSpec) { s.ConflictDetection = "Always" }, "spec.conflictDetection"},
		{"unknown reachability", func(s *v1alpha1.NetworkSpec) { s.Reachability = "Maybe" }, "spec.reachability"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tryCreate(t, network(caseName(i), tt.edit), tt.want) })
	}
}

func TestOneMalformedFieldGivesOneMessage(t *testing.T) {
	n := network("malformed", func(s *v1alpha1.NetworkSpec) {
		everything(s)
		s.Gateway, s.Subnet = "10.10.0.1", "10.10.0.0/99"
	})
	err := env.client.Create(t.Context(), n)
	want := `Network.netplane.io "malformed" is invalid: spec.subnet: Invalid value: "10.10.0.0/99": must be a CIDR, such as 10.10.0.0/16 or fd00:10:10::/64`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestNetworkName(t *testing.T) {
	for name, want := range map[string]string{
		"management":   "",
		label(63):      "",
		label(64):      "metadata.name must be a DNS label",
		"data.storage": "metadata.name must be a DNS label",
		"default":      "metadata.name 'default' stands for the cluster's own network",
	} {
		t.Run(name, func(t *testing.T) { tryCreate(t, network(name, nil), want) })
	}
}

func TestNetworkUpdate(t *testing.T) {
	tests := []struct {
		name          string
		before, after func(*v1alpha1.NetworkSpec)
		want          string
	}{
		{"grown", everything, func(s *v1alpha1.NetworkSpec) {
			everything(s)
			s.AdditionalSubnets = append(s.AdditionalSubnets, "10.13.0.0/16")
			s.MTU, s.Gateway, s.ServiceProxy = 1400, "10.10.0.1", v1alpha1.ServiceProxyInPod
		}, ""},
		{"other physical network", nil, func(s *v1alpha1.NetworkSpec) { s.PhysicalNet = "phy-net1" }, "physicalNet is immutable: make a new Network"},
		{"other plugin", nil, func(s *v1alpha1.NetworkSpec) { s.Plugin = "bridge" }, "plugin is immutable: make a new Network"},
		{"other subnet", nil, func(s *v1alpha1.NetworkSpec) { s.Subnet = "10.20.0.0/16" }, "subnet is immutable, and can neither be added nor removed"},
		{"subnet removed", func(s *v1alpha1.NetworkSpec) { s.Plugin = "Flannel" }, func(s *v1alpha1.NetworkSpec) { s.Plugin, s.Subnet = "Flannel", "" }, "subnet is immutable, and can neither be added nor removed"},
		{"subnet added", func(s *v1alpha1.NetworkSpec) { s.Plugin, s.Subnet = "Flannel", "" }, func(s *v1alpha1.NetworkSpec) { s.Plugin = "Flannel" }, "subnet is immutable, and can neither be added nor removed"},
		{"subnet6 changed", everything, func(s *v1alpha1.NetworkSpec) { everything(s); s.Subnet6 = "fd01::/64" }, "subnet6 is immutable, and can neither be added nor removed"},
		{"subnet6 removed", everything, func(s *v1alpha1.NetworkSpec) { everything(s); s.Subnet6 = "" }, "subnet6 is immutable, and can neither be added nor removed"},
		{"subnet6 added", nil, func(s *v1alpha1.NetworkSpec) { s.Subnet6 = "fd00::/64" }, "subnet6 is immutable, and can neither be added nor removed"},
		{"block size changed", everything, func(s *v1alpha1.NetworkSpec) { everything(s); s.BlockSize = 32 }, "blockSize is immutable, and can neither be added nor removed"},
		{"block size removed", everything, func(s *v1alpha1.NetworkSpec) { everything(s); s.BlockSize = 0 }, "blockSize is immutable, and can neither be added nor removed"},
		{"block size added", nil, func(s *v1alpha1.NetworkSpec) { s.BlockSize = 64 }, "blockSize is immutable, and can neither be added nor removed"},
		{"VLAN removed", everything, func(s *v1alpha1.NetworkSpec) { everything(s); s.VLAN = 0 }, "vlan is immutable, and can neither be added nor removed"},
		{"static range removed", everything, func(s *v1alpha1.NetworkSpec) { everything(s); s.StaticRange = "" }, "staticRange is immutable, and can neither be added nor removed"},
		{"an additional subnet removed", everything, func(s *v1alpha1.NetworkSpec) { everything(s); s.AdditionalSubnets = s.AdditionalSubnets[:1] }, "additionalSubnets may only grow: addresses of a removed subnet could still be in use"},
		{"all additional subnets removed", everything, func(s *v1alpha1.NetworkSpec) { everything(s); s.AdditionalSubnets = nil }, "additionalSubnets may only grow"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tryUpdate(t, network(caseName(i), tt.before), network(caseName(i), tt.after), tt.want)
		})
	}
}
