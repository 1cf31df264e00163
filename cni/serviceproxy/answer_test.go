// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package serviceproxy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// service has the ports a (TCP 80) and b (UDP 90).
func service(networks string, edit func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "svc", Annotations: map[string]string{v1alpha1.AnnotationNetworks: networks}},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00:96::1"},
			Ports: []corev1.ServicePort{{Name: "a", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "b", Port: 90, Protocol: corev1.ProtocolUDP}},
		},
	}
	if edit != nil {
		edit(svc)
	}
	return svc
}

// slice has both ports, and endpoints that are written as
// "10.1.0.5 terminating serving node=n zone=z forzone=z fornode=n unready".
func slice(network string, endpoints ...string) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Labels: map[string]string{
			discoveryv1.LabelServiceName: "svc", v1alpha1.LabelNetwork: network,
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	if len(endpoints) == 0 {
		return out // as the library's placeholders, without ports
	}
	out.Ports = []discoveryv1.EndpointPort{
		{Name: ptr.To("a"), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolTCP)},
		{Name: ptr.To("b"), Port: ptr.To[int32](9090), Protocol: ptr.To(corev1.ProtocolUDP)},
	}
	for _, text := range endpoints {
		words := strings.Fields(text)
		e := discoveryv1.Endpoint{Addresses: words[:1], Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}
		if strings.Contains(words[0], ":") {
			out.AddressType = discoveryv1.AddressTypeIPv6
		}
		for _, word := range words[1:] {
			name, value, _ := strings.Cut(word, "=")
			switch name {
			case "unready":
				e.Conditions.Ready = ptr.To(false)
			case "terminating":
				e.Conditions.Ready, e.Conditions.Terminating = ptr.To(false), ptr.To(true)
			case "serving":
				e.Conditions.Serving = ptr.To(true)
			case "node":
				e.NodeName = ptr.To(value)
			case "forzone":
				e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: value}}}
			case "fornode":
				e.Hints = &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: value}}}
			}
		}
		out.Endpoints = append(out.Endpoints, e)
	}
	return out
}

// lines renders an answer.
func lines(a *Answer) []string {
	names := map[uint8]string{6: "tcp", 17: "udp", 132: "sctp"}
	var out []string
	for front, balance := range a.balances {
		text := fmt.Sprintf("%s %s:", names[front.Protocol], netip.AddrPortFrom(front.Address, front.Port))
		for _, b := range balance.Backends {
			text += " " + b.String()
		}
		if balance.Sticky > 0 {
			text += " sticky " + balance.Sticky.String()
		}
		out = append(out, text)
	}
	for to, network := range a.ways {
		out = append(out, fmt.Sprintf("way %s: %s", to, network))
	}
	slices.Sort(out)
	return out
}

func TestAnswer(t *testing.T) {
	const data4, data6 = "10.20.0.5", "fd00:20::5"
	refused := []string{"tcp 10.96.0.1:80:", "tcp [fd00:96::1]:80:", "udp 10.96.0.1:90:", "udp [fd00:96::1]:90:", "way 10.96.0.1: data", "way fd00:96::1: data"}
	only4 := func(s *corev1.Service) { s.Spec.ClusterIPs = s.Spec.ClusterIPs[:1] }
	// one has TCP port a of the IPv4 address alone.
	one := func(edit func(*corev1.Service)) *corev1.Service {
		return service("data", func(s *corev1.Service) {
			only4(s)
			s.Spec.Ports = s.Spec.Ports[:1]
			if edit != nil {
				edit(s)
			}
		})
	}
	tests := []struct {
		name     string
		svc      *corev1.Service
		slices   []*discoveryv1.EndpointSlice
		networks []string // data, if nil
		want     []string
	}{
		{
			"both families, by port", service("data", nil), []*discoveryv1.EndpointSlice{slice("data", data4, "10.20.0.6"), slice("data", data6)}, nil,
			[]string{"tcp 10.96.0.1:80: 10.20.0.5:8080 10.20.0.6:8080", "tcp [fd00:96::1]:80: [fd00:20::5]:8080", "udp 10.96.0.1:90: 10.20.0.5:9090 10.20.0.6:9090", "udp [fd00:96::1]:90: [fd00:20::5]:9090", "way 10.96.0.1: data", "way fd00:96::1: data"},
		},
		{"no endpoints: refused", service("data", nil), []*discoveryv1.EndpointSlice{slice("data")}, nil, refused},
		{"none of the family: refused", service("data", only4), []*discoveryv1.EndpointSlice{slice("data", data6)}, nil, []string{"tcp 10.96.0.1:80:", "udp 10.96.0.1:90:", "way 10.96.0.1: data"}},
		{"no slice: the controller has not accepted it", service("data", nil), nil, nil, nil},
		{"not on the network", service("data", nil), []*discoveryv1.EndpointSlice{slice("data", data4)}, []string{"voice"}, nil},
		{"headless", service("data", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }), []*discoveryv1.EndpointSlice{slice("data", data4)}, nil, nil},
		{"of an older API server", one(func(s *corev1.Service) { s.Spec.ClusterIPs = nil }), []*discoveryv1.EndpointSlice{slice("data", data4)}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.5:8080", "way 10.96.0.1: data"}},
		{
			"malformed: by the slices that stand", service("data,", only4), []*discoveryv1.EndpointSlice{slice("data", data4)}, nil,
			[]string{"tcp 10.96.0.1:80: 10.20.0.5:8080", "udp 10.96.0.1:90: 10.20.0.5:9090"},
		},
		{"malformed, without endpoints: kube-proxy's", service("data,", only4), []*discoveryv1.EndpointSlice{slice("data")}, nil, nil},
		{"no longer annotated: by the slices that stand", one(func(s *corev1.Service) { s.Annotations = nil }), []*discoveryv1.EndpointSlice{slice("data", data4)}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.5:8080"}},
		{"another proxy's", service("data", func(s *corev1.Service) { s.Labels = map[string]string{LabelServiceProxyName: "other"} }), []*discoveryv1.EndpointSlice{slice("data", data4)}, nil, nil},
		{
			"each port its network", service("a: [data]\nb: [voice]", only4), []*discoveryv1.EndpointSlice{slice("data", data4), slice("voice", "10.30.0.5")}, []string{"data", "voice"},
			[]string{"tcp 10.96.0.1:80: 10.20.0.5:8080", "udp 10.96.0.1:90: 10.30.0.5:9090", "way 10.96.0.1: data"},
		},
		{
			"a port on a network that the pod is not on is refused", service("a: [data]\nb: [voice]", only4), []*discoveryv1.EndpointSlice{slice("data", data4), slice("voice", "10.30.0.5")}, nil,
			[]string{"tcp 10.96.0.1:80: 10.20.0.5:8080", "udp 10.96.0.1:90:", "way 10.96.0.1: data"},
		},
		{
			"a port that kube-proxy serves is left to it", service("a: [data]\nb: [default]", only4), []*discoveryv1.EndpointSlice{slice("data", data4)}, nil,
			[]string{"tcp 10.96.0.1:80: 10.20.0.5:8080"},
		},
		{"near ones are taken where kube-proxy has others", service("data,routed", only4), []*discoveryv1.EndpointSlice{slice("data", data4)}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.5:8080", "udp 10.96.0.1:90: 10.20.0.5:9090"}},
		{"without any, kube-proxy's", service("data,routed", only4), []*discoveryv1.EndpointSlice{slice("data", data4+" unready")}, nil, nil},
		{
			"on two networks", one(func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = "voice,data" }),
			[]*discoveryv1.EndpointSlice{slice("data", data4), slice("voice", "10.30.0.5")}, []string{"data", "voice"},
			[]string{"tcp 10.96.0.1:80: 10.20.0.5:8080 10.30.0.5:8080", "way 10.96.0.1: voice"},
		},
		{"an endpoint in two slices", one(nil), []*discoveryv1.EndpointSlice{slice("data", data4), slice("data", data4, data4)}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.5:8080", "way 10.96.0.1: data"}},
		{"ready ones only", one(nil), []*discoveryv1.EndpointSlice{slice("data", data4, "10.20.0.6 unready", "10.20.0.7 terminating serving")}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.5:8080", "way 10.96.0.1: data"}},
		{"ending ones where none is ready", one(nil), []*discoveryv1.EndpointSlice{slice("data", "10.20.0.6 unready", "10.20.0.7 terminating serving", "10.20.0.8 terminating")}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.7:8080", "way 10.96.0.1: data"}},
		{
			"of this node", one(func(s *corev1.Service) {
				s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
			}),
			[]*discoveryv1.EndpointSlice{slice("data", "10.20.0.5 node=other", "10.20.0.6 node=here", "10.20.0.7")}, nil,
			[]string{"tcp 10.96.0.1:80: 10.20.0.6:8080", "way 10.96.0.1: data"},
		},
		{"for this zone", one(nil), []*discoveryv1.EndpointSlice{slice("data", "10.20.0.5 forzone=west", "10.20.0.6 forzone=east")}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.6:8080", "way 10.96.0.1: data"}},
		{"for this node", one(nil), []*discoveryv1.EndpointSlice{slice("data", "10.20.0.5 fornode=here", "10.20.0.6 fornode=other")}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.5:8080", "way 10.96.0.1: data"}},
		{"hints that lack for one count for none", one(nil), []*discoveryv1.EndpointSlice{slice("data", "10.20.0.5", "10.20.0.6 forzone=east")}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.5:8080 10.20.0.6:8080", "way 10.96.0.1: data"}},
		{"hints that leave this zone without one count for none", one(nil), []*discoveryv1.EndpointSlice{slice("data", "10.20.0.5 forzone=west")}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.5:8080", "way 10.96.0.1: data"}},
		{"sticky", one(func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }), []*discoveryv1.EndpointSlice{slice("data", data4)}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.5:8080 sticky 3h0m0s", "way 10.96.0.1: data"}},
		{
			"sticky for so long", one(func(s *corev1.Service) {
				s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
				s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To[int32](7)}}
			}), []*discoveryv1.EndpointSlice{slice("data", data4)}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.5:8080 sticky 7s", "way 10.96.0.1: data"},
		},
		{"a port without protocol is TCP", one(func(s *corev1.Service) { s.Spec.Ports[0].Protocol = "" }), []*discoveryv1.EndpointSlice{slice("data", data4)}, nil, []string{"tcp 10.96.0.1:80: 10.20.0.5:8080", "way 10.96.0.1: data"}},
		{"SCTP", one(func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP }), []*discoveryv1.EndpointSlice{slice("data", data4)}, nil, []string{"sctp 10.96.0.1:80:", "way 10.96.0.1: data"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := &Cluster{
				Services: []*corev1.Service{tt.svc}, Slices: map[string][]*discoveryv1.EndpointSlice{}, Place: Place{Node: "here", Zone: "east"},
				Elsewhere: func(network string) bool { return network == "default" || network == "routed" },
			}
			for _, s := range tt.slices {
				c.Slices[s.Labels[v1alpha1.LabelNetwork]] = append(c.Slices[s.Labels[v1alpha1.LabelNetwork]], s)
			}
			networks := tt.networks
			if networks == nil {
				networks = []string{"data"}
			}
			if diff := cmp.Diff(tt.want, lines(c.Answer(networks))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAPodReachesClusterIPsByItsOwnInterface(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")
	own4, own6 := netip.MustParseAddr("10.20.0.9"), netip.MustParseAddr("fd00:20::9")
	answer := &Answer{ways: map[netip.Addr]string{v4: "data", v6: "data"}}
	pod := &Pod{Interfaces: []Interface{
		{Network: "voice", Name: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.30.0.9")}},
		{Network: "data", Name: "net1", Addresses: []netip.Addr{own4, own6}}, {Network: "data", Name: "net2", Addresses: []netip.Addr{own4.Next()}},
	}}
	want := map[netip.Addr]link.ClusterIPRoute{v4: {Interface: "net1", Source: own4}, v6: {Interface: "net1", Source: own6}}
	if diff := cmp.Diff(want, answer.For(pod).Routes, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	pod.Interfaces[1].Addresses = []netip.Addr{own4} // a network of one family
	if _, routed := answer.For(pod).Routes[v6]; routed {
		t.Error("there is a route of a family that the pod has no address of")
	}
}

// TestBackendsKeepTheirPlaces: whatever comes and goes, all are there once, and
// what moves is what has to.
func TestBackendsKeepTheirPlaces(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	some := func() []netip.AddrPort {
		set := map[netip.AddrPort]bool{}
		for range random.IntN(12) {
			set[netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(16))}), 80)] = true
		}
		return slices.SortedFunc(maps.Keys(set), compareAddrPorts)
	}
	var before []netip.AddrPort
	for range 5000 {
		want := some()
		got := arrange(before, want)
		if diff := cmp.Diff(want, slices.SortedFunc(slices.Values(got), compareAddrPorts), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Fatalf("from %v to %v: %s", before, want, diff)
		}
		for i, b := range before {
			// One that stays moves only if there is no such place any more.
			if i < len(got) && slices.Contains(want, b) && got[i] != b {
				t.Fatalf("from %v to %v: %v moved from %d", before, got, b, i)
			}
		}
		before = got
	}
}
