// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// told is a group in a form that is easy to compare.
type told struct {
	Network  string
	Families []corev1.IPFamily
	Ports    []string
	Proxy    string   // service-proxy-name label
	Pods     []string // name address readiness
}

func tell(groups []group) []told {
	var out []told
	for _, g := range groups {
		one := told{Network: g.network, Families: g.service.Spec.IPFamilies, Proxy: g.service.Labels[labelServiceProxyName]}
		for _, port := range g.service.Spec.Ports {
			one.Ports = append(one.Ports, port.Name)
		}
		for _, pod := range g.pods {
			one.Pods = append(one.Pods, fmt.Sprintf("%s %s %s", pod.Name, pod.Status.PodIP, pod.Status.Conditions[0].Status))
		}
		out = append(out, one)
	}
	return out
}

var (
	four = []corev1.IPFamily{corev1.IPv4Protocol}
	six  = []corev1.IPFamily{corev1.IPv6Protocol}
	dual = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
)

func TestPublishPutsEachAttachmentIntoItsNetworksGroup(t *testing.T) {
	tests := map[string]struct {
		annotation string
		change     func(*corev1.Service, *corev1.Pod, *facts)
		want       []told
	}{
		"all ports on two networks, both families": {
			annotation: "management,data",
			want: []told{
				{"data", dual, []string{"http", "metrics"}, "netplane.io", []string{"web 10.20.0.5 True", "web fd00:10:20::a14:5 True"}},
				{"management", dual, []string{"http", "metrics"}, "netplane.io", []string{"web 10.10.0.5 True", "web fd00:10:10::a0a:5 True"}},
			},
		},
		"networks per port": {
			annotation: "http: [data]\nmetrics: [management]",
			want: []told{
				{"data", dual, []string{"http"}, "netplane.io", []string{"web 10.20.0.5 True", "web fd00:10:20::a14:5 True"}},
				{"management", dual, []string{"metrics"}, "netplane.io", []string{"web 10.10.0.5 True", "web fd00:10:10::a0a:5 True"}},
			},
		},
		"a Service of one family": {
			annotation: "data",
			change:     func(svc *corev1.Service, _ *corev1.Pod, _ *facts) { svc.Spec.IPFamilies = six },
			want:       []told{{"data", six, []string{"http", "metrics"}, "netplane.io", []string{"web fd00:10:20::a14:5 True"}}},
		},
		"a routed network is kube-proxy's too": {
			annotation: "data",
			change: func(_ *corev1.Service, _ *corev1.Pod, known *facts) {
				n := known.networks["data"]
				n.isolated = false
				known.networks["data"] = n
			},
			want: []told{{"data", dual, []string{"http", "metrics"}, "", []string{"web 10.20.0.5 True", "web fd00:10:20::a14:5 True"}}},
		},
		"the Service's own proxy is kept": {
			annotation: "data",
			change: func(svc *corev1.Service, _ *corev1.Pod, _ *facts) {
				svc.Labels = map[string]string{labelServiceProxyName: "mine"}
			},
			want: []told{{"data", dual, []string{"http", "metrics"}, "mine", []string{"web 10.20.0.5 True", "web fd00:10:20::a14:5 True"}}},
		},
		"a pod that is not ready": {
			annotation: "data",
			change: func(_ *corev1.Service, pod *corev1.Pod, _ *facts) {
				pod.Status.Conditions[0].Status = corev1.ConditionFalse
			},
			want: []told{{"data", dual, []string{"http", "metrics"}, "netplane.io", []string{"web 10.20.0.5 False", "web fd00:10:20::a14:5 False"}}},
		},
		"one network's NIC down leaves the other's endpoints ready": {
			annotation: "management,data",
			change: func(_ *corev1.Service, _ *corev1.Pod, known *facts) {
				delete(known.linked, onNode{"worker", "phy-net1"})
			},
			want: []told{
				{"data", dual, []string{"http", "metrics"}, "netplane.io", []string{"web 10.20.0.5 False", "web fd00:10:20::a14:5 False"}},
				{"management", dual, []string{"http", "metrics"}, "netplane.io", []string{"web 10.10.0.5 True", "web fd00:10:10::a0a:5 True"}},
			},
		},
		"a pod that ended": {
			annotation: "data",
			change:     func(_ *corev1.Service, pod *corev1.Pod, _ *facts) { pod.Status.Phase = corev1.PodSucceeded },
			want:       []told{{"data", dual, []string{"http", "metrics"}, "netplane.io", nil}},
		},
		"a pod whose sandbox is gone": {
			annotation: "data",
			change: func(_ *corev1.Service, pod *corev1.Pod, _ *facts) {
				pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse})
			},
			want: []told{{"data", dual, []string{"http", "metrics"}, "netplane.io", nil}},
		},
		"eth0 of an earlier sandbox": {
			annotation: "management,data",
			change: func(_ *corev1.Service, pod *corev1.Pod, _ *facts) {
				pod.Status.PodIPs = []corev1.PodIP{{IP: "10.10.0.6"}}
			},
			want: []told{
				{"data", dual, []string{"http", "metrics"}, "netplane.io", []string{"web 10.20.0.5 True", "web fd00:10:20::a14:5 True"}},
				{"management", dual, []string{"http", "metrics"}, "netplane.io", nil},
			},
		},
		"a pod that is not on the network": {
			annotation: "data",
			change: func(_ *corev1.Service, pod *corev1.Pod, _ *facts) {
				attach(pod, attachment("management", "eth0", "10.10.0.5"))
			},
			want: []told{{"data", dual, []string{"http", "metrics"}, "netplane.io", nil}},
		},
		"a pod on the network twice": {
			annotation: "data",
			change: func(svc *corev1.Service, pod *corev1.Pod, _ *facts) {
				svc.Spec.IPFamilies = four
				attach(pod, attachment("data", "eth1", "10.20.0.5"), attachment("data", "eth2", "10.20.0.6"))
			},
			want: []told{{"data", four, []string{"http", "metrics"}, "netplane.io", []string{"web 10.20.0.5 True", "web 10.20.0.6 True"}}},
		},
		"default is not for a pod whose eth0 is ours": {
			annotation: "default",
			want:       []told{{"default", dual, []string{"http", "metrics"}, "", nil}},
		},
		"default gives the pod IPs": {
			annotation: "default",
			change: func(_ *corev1.Service, pod *corev1.Pod, _ *facts) {
				pod.Annotations = map[string]string{v1alpha1.AnnotationNetworks: "data@eth1"}
				pod.Status.PodIPs = []corev1.PodIP{{IP: "10.244.1.5"}}
			},
			want: []told{{"default", dual, []string{"http", "metrics"}, "", []string{"web 10.244.1.5 True"}}},
		},
		"a headless Service without ports": {
			annotation: "data",
			change:     func(svc *corev1.Service, _ *corev1.Pod, _ *facts) { svc.Spec.Ports = nil },
			want:       []told{{"data", dual, nil, "netplane.io", []string{"web 10.20.0.5 True", "web fd00:10:20::a14:5 True"}}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			svc, pod, known := example(t)
			if tt.change != nil {
				tt.change(svc, pod, &known)
			}
			before := svc.DeepCopy()
			out := publish(svc, parsed(t, tt.annotation), []*corev1.Pod{pod}, known)
			if diff := cmp.Diff(tt.want, tell(out.groups)); diff != "" {
				t.Errorf("groups (-want +got):\n%s", diff)
			}
			if len(out.withheld) > 0 || len(out.problems) > 0 {
				t.Errorf("withheld %+v, problems %+v", out.withheld, out.problems)
			}
			if diff := cmp.Diff(before, svc); diff != "" {
				t.Errorf("publish changed the Service:\n%s", diff)
			}
		})
	}
}

func TestPublishWithholdsWhatThePodsNodeDoesNotHold(t *testing.T) {
	tests := map[string]struct {
		change func(*corev1.Pod, *facts)
		pods   []string
		want   []string
	}{
		"an address from elsewhere": {
			change: func(pod *corev1.Pod, _ *facts) {
				attach(pod, attachment("data", "eth1", "10.20.0.5", "192.0.2.1"))
			},
			pods: []string{"web 10.20.0.5 True"},
			want: []string{"192.0.2.1: it lies in no IPBlock of this network that the pod's node holds, and no IPClaim gives it to the pod"},
		},
		"an address of another node's block": {
			change: func(pod *corev1.Pod, known *facts) {
				known.blocks[onNode{"worker2", "data"}] = prefixes("10.20.0.64/26")
				attach(pod, attachment("data", "eth1", "10.20.0.70"))
			},
			want: []string{"10.20.0.70: it lies in no IPBlock of this network that the pod's node holds, and no IPClaim gives it to the pod"},
		},
		"an address of another network's block": {
			change: func(pod *corev1.Pod, _ *facts) { attach(pod, attachment("data", "eth1", "10.10.0.5")) },
			want:   []string{"10.10.0.5: it lies in no IPBlock of this network that the pod's node holds, and no IPClaim gives it to the pod"},
		},
		"the node's own address": {
			change: func(pod *corev1.Pod, _ *facts) { attach(pod, attachment("data", "eth1", "10.20.0.1")) },
			want:   []string{"10.20.0.1: it lies in no IPBlock of this network that the pod's node holds, and no IPClaim gives it to the pod"},
		},
		"an IPv6 address that follows from none": {
			change: func(pod *corev1.Pod, _ *facts) {
				attach(pod, attachment("data", "eth1", "10.20.0.5", "fd00:10:20::a14:46"))
			},
			pods: []string{"web 10.20.0.5 True"},
			want: []string{"fd00:10:20::a14:46: it lies in no IPBlock of this network that the pod's node holds, and no IPClaim gives it to the pod"},
		},
		"a block that went": {
			change: func(_ *corev1.Pod, known *facts) { delete(known.blocks, onNode{"worker", "data"}) },
			want: []string{
				"10.20.0.5: it lies in no IPBlock of this network that the pod's node holds, and no IPClaim gives it to the pod",
				"fd00:10:20::a14:5: it lies in no IPBlock of this network that the pod's node holds, and no IPClaim gives it to the pod",
			},
		},
		"an address that another claims": {
			change: func(_ *corev1.Pod, known *facts) {
				known.contested = func(_ *corev1.Pod, c claim) bool { return c.addr.Is4() }
			},
			pods: []string{"web fd00:10:20::a14:5 True"},
			want: []string{"10.20.0.5: another pod on the same node claims it too"},
		},
		"a plugin's own address": {
			change: func(pod *corev1.Pod, known *facts) {
				known.networks["data"] = networkOf(&v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: v1alpha1.NetworkSpec{PhysicalNet: "phy-net1", Plugin: "Flannel"}})
				attach(pod, attachment("data", "eth1", "10.244.1.7"))
			},
			pods: []string{"web 10.244.1.7 True"},
		},
		"a plugin's own address that another claims": {
			change: func(pod *corev1.Pod, known *facts) {
				known.networks["data"] = networkOf(&v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: v1alpha1.NetworkSpec{PhysicalNet: "phy-net1", Plugin: "Flannel"}})
				known.contested = func(*corev1.Pod, claim) bool { return true }
				attach(pod, attachment("data", "eth1", "10.244.1.7"))
			},
			want: []string{"10.244.1.7: another pod claims it too"},
		},
		"a fixed address that an IPClaim gives the pod": {
			change: func(pod *corev1.Pod, known *facts) {
				known.fixed = map[types.UID][]claim{"1": {{"data", netip.MustParseAddr("10.20.9.9")}}}
				known.contested = func(*corev1.Pod, claim) bool { return true } // by forgers only
				attach(pod, attachment("data", "eth1", "10.20.9.9", "fd00:10:20::a14:909"))
			},
			pods: []string{"web 10.20.9.9 True", "web fd00:10:20::a14:909 True"},
		},
		"a fixed address of another pod": {
			change: func(pod *corev1.Pod, known *facts) {
				known.fixed = map[types.UID][]claim{"2": {{"data", netip.MustParseAddr("10.20.9.9")}}, "1": {{"management", netip.MustParseAddr("10.20.9.9")}}}
				attach(pod, attachment("data", "eth1", "10.20.9.9"))
			},
			want: []string{"10.20.9.9: it lies in no IPBlock of this network that the pod's node holds, and no IPClaim gives it to the pod"},
		},
		"no address at all": {
			change: func(pod *corev1.Pod, _ *facts) { attach(pod, attachment("data", "eth1", "10.20.0.5/16")) },
			want:   []string{"10.20.0.5/16: it is no IP address"},
		},
		"what the API server would refuse in a slice": {
			change: func(pod *corev1.Pod, known *facts) {
				known.networks["data"] = networkOf(&v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: v1alpha1.NetworkSpec{PhysicalNet: "phy-net1", Plugin: "Flannel"}})
				attach(pod, attachment("data", "eth1", "10.244.1.7", "127.0.0.1", "169.254.0.9", "fe80::1", "239.1.2.3", "::", "::ffff:10.244.1.8"))
			},
			pods: []string{"web 10.244.1.7 True"},
			want: []string{"127.0.0.1: " + whyNoHost, "169.254.0.9: " + whyNoHost, "fe80::1: " + whyNoHost, "239.1.2.3: " + whyNoHost, "::: " + whyNoHost, "::ffff:10.244.1.8: " + whyNoHost},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			svc, pod, known := example(t)
			tt.change(pod, &known)
			out := publish(svc, parsed(t, "data"), []*corev1.Pod{pod}, known)
			var got []string
			for _, w := range out.withheld {
				got = append(got, fmt.Sprintf("%s: %s", w.address, w.why))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("withheld (-want +got):\n%s", diff)
			}
			want := []told{{"data", dual, []string{"http", "metrics"}, "netplane.io", tt.pods}}
			if diff := cmp.Diff(want, tell(out.groups)); diff != "" {
				t.Errorf("groups (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPublishTellsProblems(t *testing.T) {
	tests := map[string]struct {
		annotation string
		change     func(*corev1.Service, *facts)
		groups     []string
		want       []problem
	}{
		"an unknown network": {
			annotation: "data,storage",
			groups:     []string{"data"},
			want:       []problem{{"UnknownNetwork", `there is no Network "storage": create it, or name another in the annotation netplane.io/networks`}},
		},
		"no shared family": {
			annotation: "data",
			change: func(svc *corev1.Service, known *facts) {
				svc.Spec.IPFamilies = six
				known.networks["data"] = networkOf(&v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: v1alpha1.NetworkSpec{PhysicalNet: "phy-net1", Subnet: "10.20.0.0/16"}})
			},
			want: []problem{{"NoSharedFamily", `network "data" has IPv4 addresses, the Service wants IPv6: change spec.ipFamilies and spec.ipFamilyPolicy`}},
		},
		"a cluster IP over isolated networks": {
			annotation: "http: [data]\nmetrics: [default, data]",
			change:     func(svc *corev1.Service, _ *facts) { svc.Spec.ClusterIP = "10.96.0.10" },
			groups:     []string{"data", "default"},
			want:       []problem{{"IsolatedClusterIP", `port "http": its networks are isolated from the nodes, so that nothing answers at the cluster IP: make the Service headless (clusterIP: None), set serviceProxy: InPod on a network, or name one whose reachability is Routed`}},
		},
		"a cluster IP over an isolated network that pods serve for themselves": {
			annotation: "management,data",
			change: func(svc *corev1.Service, known *facts) {
				svc.Spec.ClusterIP = "10.96.0.10"
				n := known.networks["data"]
				n.inPod = true
				known.networks["data"] = n
			},
			groups: []string{"data", "management"},
		},
		"a cluster IP over a routed network": {
			annotation: "management,data",
			change: func(svc *corev1.Service, known *facts) {
				svc.Spec.ClusterIP = "10.96.0.10"
				n := known.networks["management"]
				n.isolated = false
				known.networks["management"] = n
			},
			groups: []string{"data", "management"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			svc, pod, known := example(t)
			known.networks["default"] = clusterNetwork()
			if tt.change != nil {
				tt.change(svc, &known)
			}
			out := publish(svc, parsed(t, tt.annotation), []*corev1.Pod{pod}, known)
			var groups []string
			for _, g := range out.groups {
				groups = append(groups, g.network)
			}
			if diff := cmp.Diff(tt.groups, groups); diff != "" {
				t.Errorf("groups (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, out.problems, cmp.AllowUnexported(problem{})); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOutclaims(t *testing.T) {
	deleted := &metav1.Time{}
	pod := func(uid types.UID, node string, deletion *metav1.Time) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid, DeletionTimestamp: deletion}, Spec: corev1.PodSpec{NodeName: node}}
	}
	tests := map[string]struct {
		pod       corev1.Pod
		claimants []corev1.Pod
		want      bool
		anywhere  bool // if the Network has no blocks
	}{
		"alone":                             {pod("1", "worker", nil), []corev1.Pod{pod("1", "worker", nil)}, false, false},
		"two living on one node":            {pod("1", "worker", nil), []corev1.Pod{pod("1", "worker", nil), pod("2", "worker", nil)}, true, true},
		"a forger on another node":          {pod("1", "worker", nil), []corev1.Pod{pod("2", "worker2", nil)}, false, true},
		"the other is going":                {pod("1", "worker", nil), []corev1.Pod{pod("2", "worker", deleted)}, false, false},
		"this one is going":                 {pod("1", "worker", deleted), []corev1.Pod{pod("2", "worker", nil)}, true, true},
		"both are going":                    {pod("1", "worker", deleted), []corev1.Pod{pod("2", "worker", deleted)}, true, true},
		"one going, one living beside this": {pod("1", "worker", nil), []corev1.Pod{pod("2", "worker", deleted), pod("3", "worker", nil)}, true, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			contested := func(anywhere bool) bool {
				return slices.ContainsFunc(tt.claimants, func(other corev1.Pod) bool { return outclaims(&other, &tt.pod, anywhere) })
			}
			if got := contested(false); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if got := contested(true); got != tt.anywhere {
				t.Errorf("of a Network without blocks: got %v, want %v", got, tt.anywhere)
			}
		})
	}
}

func TestAPodWithoutSandboxClaimsNothing(t *testing.T) {
	_, pod, _ := example(t)
	if got := len(claimsOf(pod)); got != 4 {
		t.Errorf("%d claims of a running pod, want 4", got)
	}
	conditions := pod.Status.Conditions
	pod.Status.Conditions = append(slices.Clone(conditions), corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse})
	if got := claimsOf(pod); len(got) != 0 {
		t.Errorf("claims %v of a pod whose sandbox is gone", got)
	}
	pod.Status.Conditions = conditions
	pod.Status.Phase = corev1.PodFailed
	if got := claimsOf(pod); len(got) != 0 {
		t.Errorf("claims %v of a pod that ended", got)
	}
}

// example is a Service, a ready pod on both networks, and all that is known of them.
func example(t *testing.T) (*corev1.Service, *corev1.Pod, facts) {
	t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"},
		Spec: corev1.ServiceSpec{
			ClusterIP:  corev1.ClusterIPNone,
			IPFamilies: dual,
			Ports:      []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "metrics", Port: 9090}},
		},
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "1", Annotations: map[string]string{
			v1alpha1.AnnotationNetworks:             "management@eth0,data@eth1",
			v1alpha1.AnnotationNetworkStatusSandbox: "sandbox",
		}},
		Spec: corev1.PodSpec{NodeName: "worker"},
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			PodIP:      "10.10.0.5",
			PodIPs:     []corev1.PodIP{{IP: "10.10.0.5"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	attach(pod, attachment("management", "eth0", "10.10.0.5", "fd00:10:10::a0a:5"), attachment("data", "eth1", "10.20.0.5", "fd00:10:20::a14:5"))
	known := facts{
		networks: map[string]network{
			"management": networkOf(&v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "management"}, Spec: v1alpha1.NetworkSpec{PhysicalNet: "phy-net0", Subnet: "10.10.0.0/16", Subnet6: "fd00:10:10::/64"}}),
			"data":       networkOf(&v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: v1alpha1.NetworkSpec{PhysicalNet: "phy-net1", Subnet: "10.20.0.0/16", Subnet6: "fd00:10:20::/64"}}),
			"default":    clusterNetwork(),
		},
		blocks: map[onNode][]netip.Prefix{
			{"worker", "management"}: prefixes("10.10.0.64/26", "10.10.0.0/26"),
			{"worker", "data"}:       prefixes("10.20.0.0/26"),
		},
		down:      map[onNode]bool{{"worker", "ens2"}: true},
		linked:    map[onNode]bool{{"worker", "phy-net0"}: true, {"worker", "phy-net1"}: true},
		contested: func(*corev1.Pod, claim) bool { return false },
		status:    readStatus,
	}
	return svc, pod, known
}

func readStatus(pod *corev1.Pod) ([]podnetworks.Attachment, error) {
	return podnetworks.ParseStatus(pod.Annotations[v1alpha1.AnnotationNetworkStatus])
}

func attachment(network, ifname string, ips ...string) podnetworks.Attachment {
	return podnetworks.Attachment{Name: network, Interface: ifname, IPs: ips}
}

func attach(pod *corev1.Pod, attachments ...podnetworks.Attachment) {
	text, err := podnetworks.FormatStatus(attachments)
	if err != nil {
		panic(err)
	}
	pod.Annotations[v1alpha1.AnnotationNetworkStatus] = text
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func parsed(t *testing.T, annotation string) podnetworks.ServiceNetworks {
	t.Helper()
	networks, err := podnetworks.ParseService(strings.TrimSpace(annotation))
	if err != nil {
		t.Fatal(err)
	}
	return networks
}
