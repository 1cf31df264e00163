// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package serviceproxy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// world is a node around a Manager.
type world struct {
	*testing.T
	*Manager
	links *link.Fake
	clock *clocktesting.FakeClock

	mu       sync.Mutex
	networks []v1alpha1.Network
	pods     []Pod
	services []*corev1.Service
	slices   map[string][]*discoveryv1.EndpointSlice
	complete bool
	followed map[string]int // watches that are open
	hads     []bool         // whether a write knew what was there
}

func newWorld(t *testing.T) *world {
	w := &world{
		T: t, links: link.NewFake(nil), clock: clocktesting.NewFakeClock(time.Unix(0, 0)), complete: true,
		pods: []Pod{}, slices: map[string][]*discoveryv1.EndpointSlice{}, followed: map[string]int{},
	}
	w.network("data", v1alpha1.ServiceProxyInPod)
	w.network("plain", v1alpha1.ServiceProxyNone)
	w.services = []*corev1.Service{service("data", func(s *corev1.Service) { s.Spec.ClusterIPs, s.Spec.Ports = s.Spec.ClusterIPs[:1], s.Spec.Ports[:1] })}
	w.slices["data"] = []*discoveryv1.EndpointSlice{slice("data", "10.20.0.5")}
	w.restart()
	return w
}

// restart has another run of the agent begin.
func (w *world) restart() {
	w.Manager = New(Deps{
		Links: w, Watch: w, Clock: w.clock, Place: func() Place { return Place{} },
		Networks: func() []v1alpha1.Network { return w.networks }, Pods: func() []Pod { return w.pods },
	})
	w.Cleanup(w.close)
}

func (w *world) SetClusterIPs(ctx context.Context, netns string, had, want *link.ClusterIPs) error {
	w.hads = append(w.hads, had != nil)
	return w.links.SetClusterIPs(ctx, netns, had, want)
}

func (w *world) open(ctx context.Context, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.followed[what]++
	context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.followed[what]--
	})
}

func (w *world) Services(ctx context.Context, _ func()) (func() ([]*corev1.Service, bool), error) {
	w.open(ctx, "services")
	return func() ([]*corev1.Service, bool) { return w.services, w.complete }, nil
}

func (w *world) Slices(ctx context.Context, network string, _ func()) (func() ([]*discoveryv1.EndpointSlice, bool), error) {
	w.open(ctx, network)
	return func() ([]*discoveryv1.EndpointSlice, bool) { return w.slices[network], w.complete }, nil
}

func (w *world) network(name string, proxy v1alpha1.ServiceProxy) {
	for i := range w.networks {
		if w.networks[i].Name == name {
			w.networks[i].Spec.ServiceProxy = proxy
			return
		}
	}
	w.networks = append(w.networks, v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.NetworkSpec{ServiceProxy: proxy}})
}

func podOn(id string, networks ...string) Pod {
	out := Pod{ID: id, NetNS: id}
	for _, n := range networks {
		out.Interfaces = append(out.Interfaces, Interface{Network: n, Name: "to-" + n, Addresses: []netip.Addr{netip.MustParseAddr("10.20.0.9")}})
	}
	return out
}

func (w *world) wantRules(when string, want ...string) {
	w.Helper()
	if diff := cmp.Diff(strings.Join(want, "\n"), strings.TrimSpace(w.links.String())); diff != "" {
		w.Errorf("%s: %s", when, diff)
	}
}

// wantFollowed waits for watches to end, which is told by a goroutine.
func (w *world) wantFollowed(want map[string]int) {
	w.Helper()
	var got map[string]int
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		w.mu.Lock()
		got = map[string]int{}
		for what, open := range w.followed {
			if open > 0 {
				got[what] = open
			}
		}
		w.mu.Unlock()
		if cmp.Equal(want, got) {
			return
		}
	}
	w.Errorf("watched: %s", cmp.Diff(want, got))
}

const (
	ruleOfA  = "a: clusterip protocol 6 10.96.0.1:80 -> [10.20.0.5:8080]"
	routeOfA = "a: clusterip route 10.96.0.1 dev to-data src 10.20.0.9"
)

func TestPodsGetRulesBeforeTheyRun(t *testing.T) {
	w := newWorld(t)
	a := podOn("a", "plain", "data")
	w.pods = []Pod{a, podOn("b", "plain")}
	for i := range w.pods {
		if err := w.Ensure(t.Context(), w.pods[i]); err != nil {
			t.Fatal(err)
		}
	}
	w.wantRules("after Ensure", ruleOfA, routeOfA)
	w.wantFollowed(map[string]int{"services": 1, "data": 1})

	w.slices["data"] = []*discoveryv1.EndpointSlice{slice("data")}
	w.sync(t.Context())
	w.wantRules("without endpoints", "a: clusterip protocol 6 10.96.0.1:80 -> refused", routeOfA)
	writes := len(w.hads)
	w.sync(t.Context())
	if len(w.hads) != writes {
		t.Error("rules were written although nothing changed")
	}

	w.pods = []Pod{}
	w.sync(t.Context())
	w.wantFollowed(map[string]int{})
}

func TestNothingIsFollowedForOtherNetworks(t *testing.T) {
	w := newWorld(t)
	w.network("data", v1alpha1.ServiceProxyNone)
	w.pods = []Pod{podOn("a", "plain", "data")}
	if err := w.Ensure(t.Context(), w.pods[0]); err != nil {
		t.Fatal(err)
	}
	w.sync(t.Context()) // the first one looks for what a former run left
	writes := len(w.hads)
	w.sync(t.Context())
	w.wantRules("on networks without proxy")
	w.wantFollowed(map[string]int{})
	if len(w.hads) != writes {
		t.Error("pods were looked at again")
	}
}

func TestTheNetworkTurnsItOnAndOff(t *testing.T) {
	w := newWorld(t)
	w.pods = []Pod{podOn("a", "data")}
	w.sync(t.Context())
	w.wantRules("on", ruleOfA, routeOfA)
	w.network("data", v1alpha1.ServiceProxyNone)
	w.sync(t.Context())
	w.wantRules("off")
	w.wantFollowed(map[string]int{})
	w.network("data", v1alpha1.ServiceProxyInPod)
	w.sync(t.Context())
	w.wantRules("on again", ruleOfA, routeOfA)
}

func TestARestartedAgentTrustsNoRules(t *testing.T) {
	w := newWorld(t)
	w.pods = []Pod{podOn("a", "data"), podOn("b", "data")}
	w.sync(t.Context())
	w.restart()
	w.hads = nil
	w.pods[1] = podOn("b", "plain") // unplugged meanwhile
	w.sync(t.Context())
	w.wantRules("after the restart", ruleOfA, routeOfA)
	if diff := cmp.Diff([]bool{false, false}, w.hads); diff != "" {
		t.Errorf("writes that believed to know: %s", diff)
	}
}

func TestRulesStayWhileTheServicesAreNotKnown(t *testing.T) {
	w := newWorld(t)
	w.pods = []Pod{podOn("a", "data")}
	w.sync(t.Context())
	w.restart()
	w.complete = false
	w.services = nil
	w.sync(t.Context())
	w.wantRules("while the lists are not complete", ruleOfA, routeOfA)
}

func TestRulesStayWhileTheNetworksAreNotKnown(t *testing.T) {
	w := newWorld(t)
	w.pods = []Pod{podOn("a", "data")}
	w.sync(t.Context())
	w.restart()
	w.networks = nil
	w.sync(t.Context())
	w.wantRules("while the Networks are not known", ruleOfA, routeOfA)
	w.networks = []v1alpha1.Network{}
	w.sync(t.Context())
	w.wantRules("when there are none")
}

func TestAFailedWriteIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.pods = []Pod{podOn("a", "data")}
	w.links.FailOn = func(string) error { return errors.New("no nftables") }
	if err := w.Ensure(t.Context(), w.pods[0]); err == nil {
		t.Error("the pod starts without its rules")
	}
	w.sync(t.Context())
	w.links.FailOn = nil
	w.hads = nil
	w.sync(t.Context())
	w.wantRules("once it works", ruleOfA, routeOfA)
	if diff := cmp.Diff([]bool{false}, w.hads); diff != "" {
		t.Errorf("writes that believed to know: %s", diff)
	}
	if got := w.Stats(); got != (Stats{Pods: 1, Frontends: 1, Writes: 3, Failures: 2}) {
		t.Errorf("stats %+v", got)
	}
}

func TestAPodWhoseNamespaceIsGoneIsNoFailure(t *testing.T) {
	w := newWorld(t)
	w.pods = []Pod{podOn("a", "data")}
	w.links.FailOn = func(string) error { return link.ErrNamespaceGone }
	w.sync(t.Context())
	if got := w.Stats(); got.Failures != 0 || got.Pods != 0 {
		t.Errorf("stats %+v", got)
	}
}

func TestAPodStartsAlthoughTheServicesStayUnknown(t *testing.T) {
	w := newWorld(t)
	w.complete = false
	w.pods = []Pod{podOn("a", "data")}
	ended := make(chan error, 1)
	go func() { ended <- w.Ensure(t.Context(), w.pods[0]) }()
	for waited := time.Duration(0); ; waited += firstPoll {
		select {
		case err := <-ended:
			if err != nil || waited < firstWait {
				t.Errorf("it ended after %s with %v", waited, err)
			}
			w.wantRules("nothing is known")
			return
		default:
		}
		if w.clock.HasWaiters() {
			w.clock.Step(firstPoll)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestNobodyIsWokenByPodsWithoutRules(t *testing.T) {
	w := newWorld(t)
	w.Left()
	if len(w.wake) > 0 {
		t.Error("a pod that leaves wakes although no pod has rules")
	}
	w.pods = []Pod{podOn("a", "data")}
	w.sync(t.Context())
	w.Left()
	if len(w.wake) != 1 {
		t.Error("a pod that leaves does not wake although one has rules")
	}
}

func TestRunLooksWhenItIsTold(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Manager.Run(ctx) }()
	w.Manager.mu.Lock()
	w.pods = []Pod{podOn("a", "data")}
	w.Manager.mu.Unlock()
	w.Notify()
	for deadline := time.Now().Add(10 * time.Second); w.Stats().Pods == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no look within 10 s")
		}
		w.clock.Step(settle)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.wantRules("the agent has ended, the pod goes on", ruleOfA, routeOfA)
	w.wantFollowed(map[string]int{})
}
