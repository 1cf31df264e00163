// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package serviceproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

const (
	// lookEvery has what failed tried again.
	lookEvery = 30 * time.Second
	// settle gathers events: a rollout changes several slices at once.
	settle = 50 * time.Millisecond
	// idleFactor bounds what looks may take of a CPU: after each there is a pause
	// of so many times its length, of maxPause at most.
	idleFactor, maxPause = 9, 2 * time.Second
	// firstWait is how long the first pod of a Network waits until its Services
	// are known; firstPoll how often it looks.
	firstWait, firstPoll = 3 * time.Second, 10 * time.Millisecond
)

// Links changes rules in pods; link.Links does.
type Links interface {
	SetClusterIPs(ctx context.Context, netns string, had, want *link.ClusterIPs) error
}

// Watch follows objects of the API server until ctx ends. The lists are false
// until they are complete; changed is called then, and for every change.
type Watch interface {
	Services(ctx context.Context, changed func()) (list func() ([]*corev1.Service, bool), err error)
	// Slices are those of EndpointSliceManagedBy of one Network.
	Slices(ctx context.Context, network string, changed func()) (list func() ([]*discoveryv1.EndpointSlice, bool), err error)
}

// Deps are what a Manager works with; all are required but Clock.
type Deps struct {
	Links Links
	Watch Watch
	// Networks lists all Networks; nil if they are not known at the moment.
	Networks func() []v1alpha1.Network
	// Pods lists the node's pods that have, or are being given, interfaces on
	// Networks. It is nil until that is known.
	Pods func() []Pod
	// Place is the node's, of this moment.
	Place func() Place
	// Clock is for tests; nil is the real one.
	Clock clock.WithTicker
}

// Stats are what a Manager keeps and did.
type Stats struct {
	// Pods have rules, for so many Frontends in all.
	Pods, Frontends int
	// Writes are changes of a pod's rules, Failures those that failed.
	Writes, Failures uint64
}

// Manager keeps the rules of the node's pods. It is safe for concurrent use.
type Manager struct {
	deps Deps
	// base ends when the Manager is closed; watches hang on it.
	base  context.Context
	close context.CancelFunc
	wake  chan struct{}

	mu sync.Mutex // held while rules change
	// services and slices, by Network, are followed while a pod needs them.
	services *followed[corev1.Service]
	slices   map[string]*followed[discoveryv1.EndpointSlice]
	// answers are the last ones, by the Networks that pods are on.
	answers map[string]*Answer
	// pods have rules, or may have.
	pods map[string]*served
	// swept: pods without such Networks have no rules of a former run.
	swept bool
	stats Stats
	// known is how many pods there are, for Left, which does not wait for a look.
	known atomic.Int64
}

// followed is a list that is watched.
type followed[T any] struct {
	list func() ([]*T, bool)
	stop context.CancelFunc
}

// served is a pod's rules; has is nil while they are not known.
type served struct{ has *link.ClusterIPs }

// New makes a Manager; nothing runs before Ensure or Run.
func New(deps Deps) *Manager {
	if deps.Clock == nil {
		deps.Clock = clock.RealClock{}
	}
	base, cancel := context.WithCancel(context.Background())
	return &Manager{
		deps: deps, base: base, close: cancel, wake: make(chan struct{}, 1),
		slices: map[string]*followed[discoveryv1.EndpointSlice]{}, answers: map[string]*Answer{}, pods: map[string]*served{},
	}
}

// Notify says that something changed that rules depend on. It never blocks.
func (m *Manager) Notify() {
	select {
	case m.wake <- struct{}{}:
	default: // a signal is already waiting
	}
}

// Left is Notify when a pod has lost an interface, or all. It costs nothing where
// no pod has rules.
func (m *Manager) Left() {
	if m.known.Load() > 0 {
		m.Notify()
	}
}

// Stats tells of this moment.
func (m *Manager) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.stats
	for _, pod := range m.pods {
		if !pod.has.Empty() {
			out.Pods++
			out.Frontends += len(pod.has.Balances)
		}
	}
	return out
}

// Run keeps the rules true until ctx ends. They stay then: pods go on without
// the agent.
func (m *Manager) Run(ctx context.Context) error {
	defer m.close()
	ticker := m.deps.Clock.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		began := m.deps.Clock.Now()
		m.sync(ctx)
		pause := min(idleFactor*m.deps.Clock.Since(began), maxPause) + settle
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		case <-m.wake:
			select {
			case <-ctx.Done():
				return nil
			case <-m.deps.Clock.After(pause):
			}
		}
	}
}

// Ensure gives a pod that is being started, which Pods lists already, its rules.
// It waits for a moment until the Services are known.
func (m *Manager) Ensure(ctx context.Context, pod Pod) error {
	deadline := m.deps.Clock.Now().Add(firstWait)
	for {
		done, err := m.ensure(ctx, &pod)
		if done || err != nil {
			return err
		}
		if m.deps.Clock.Now().After(deadline) {
			klog.FromContext(ctx).Info("A pod starts before the Services of its networks are known", "netns", pod.NetNS)
			return nil
		}
		select {
		case <-m.deps.Clock.After(firstPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ensure is false as long as not all is known that the pod's rules depend on.
func (m *Manager) ensure(ctx context.Context, pod *Pod) (done bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	view, known := m.look()
	if !known {
		return false, nil
	}
	networks := view.of(pod)
	if len(networks) == 0 {
		return true, nil
	}
	if err := m.follow(networks); err != nil {
		return false, err
	}
	cluster, complete := m.cluster(view, networks)
	if !complete {
		return false, nil
	}
	return true, m.apply(ctx, pod, m.answer(cluster, networks).For(pod))
}

// view is what Networks say at one moment.
type view struct{ inPod, elsewhere map[string]bool }

// look is false if the Networks are not known: a pod must not lose its rules for that.
func (m *Manager) look() (v view, known bool) {
	v = view{inPod: map[string]bool{}, elsewhere: map[string]bool{v1alpha1.DefaultNetworkName: true}}
	networks := m.deps.Networks()
	for i := range networks {
		n := &networks[i]
		if n.Spec.ServiceProxy == v1alpha1.ServiceProxyInPod {
			v.inPod[n.Name] = true
		}
		if n.Spec.Reachability == v1alpha1.ReachabilityRouted {
			v.elsewhere[n.Name] = true
		}
	}
	return v, networks != nil
}

// of are the pod's Networks that are InPod, sorted.
func (v view) of(pod *Pod) []string {
	var out []string
	for i := range pod.Interfaces {
		if network := pod.Interfaces[i].Network; v.inPod[network] {
			out = append(out, network)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// sync makes the rules of all pods what they are to be.
func (m *Manager) sync(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	view, known := m.look()
	if !known || len(view.inPod) == 0 && len(m.pods) == 0 && m.swept {
		return // a cluster without such Networks pays nothing
	}
	pods := m.deps.Pods()
	if pods == nil {
		return
	}
	used, alive, fresh := map[string]bool{}, map[string]bool{}, map[string]*Answer{}
	swept := true
	for i := range pods {
		pod := &pods[i]
		alive[pod.ID] = true
		networks := view.of(pod)
		if len(networks) == 0 {
			swept = m.clear(ctx, pod) && swept
			continue
		}
		for _, network := range networks {
			used[network] = true
		}
		if err := m.follow(networks); err != nil {
			klog.FromContext(ctx).Error(err, "The Services of a pod's networks are not followed", "netns", pod.NetNS)
			continue
		}
		answer, ok := fresh[strings.Join(networks, ",")]
		if !ok {
			if cluster, complete := m.cluster(view, networks); complete {
				answer = m.answer(cluster, networks)
				fresh[strings.Join(networks, ",")] = answer
			}
		}
		if answer != nil {
			m.tell(ctx, pod, m.apply(ctx, pod, answer.For(pod)))
		}
	}
	m.swept = swept
	m.leave(used, alive, fresh)
}

// clear takes the rules of a pod away that is on no such Network any more, and
// what a former run may have left.
func (m *Manager) clear(ctx context.Context, pod *Pod) bool {
	if _, known := m.pods[pod.ID]; !known && m.swept {
		return true
	}
	err := m.apply(ctx, pod, &link.ClusterIPs{})
	m.tell(ctx, pod, err)
	if err == nil {
		delete(m.pods, pod.ID)
		m.known.Store(int64(len(m.pods)))
	}
	return err == nil
}

// tell is where errors end; the next look tries again.
func (m *Manager) tell(ctx context.Context, pod *Pod, err error) {
	if err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "A pod may reach ClusterIPs by endpoints that are gone, or not at all", "netns", pod.NetNS)
	}
}

// apply changes a pod's rules. A pod that is gone needs none.
func (m *Manager) apply(ctx context.Context, pod *Pod, want *link.ClusterIPs) error {
	s := m.pods[pod.ID]
	if s == nil {
		s = &served{}
		m.pods[pod.ID] = s
		m.known.Store(int64(len(m.pods)))
	}
	if s.has != nil && same(s.has, want) {
		return nil
	}
	had := s.has
	s.has = nil
	m.stats.Writes++
	if err := m.deps.Links.SetClusterIPs(ctx, pod.NetNS, had, want); err != nil {
		if errors.Is(err, link.ErrNamespaceGone) {
			return nil
		}
		m.stats.Failures++
		return fmt.Errorf("changing the rules of ClusterIPs: %w", err)
	}
	s.has = want
	return nil
}

func same(a, b *link.ClusterIPs) bool {
	return maps.Equal(a.Routes, b.Routes) && maps.EqualFunc(a.Balances, b.Balances, func(x, y link.Balance) bool {
		return x.Sticky == y.Sticky && slices.Equal(x.Backends, y.Backends)
	})
}

// follow begins to watch what pods on these Networks need.
func (m *Manager) follow(networks []string) error {
	if m.services == nil {
		ctx, stop := context.WithCancel(m.base)
		list, err := m.deps.Watch.Services(ctx, m.Notify)
		if err != nil {
			stop()
			return fmt.Errorf("watching Services: %w", err)
		}
		m.services = &followed[corev1.Service]{list, stop}
	}
	for _, network := range networks {
		if m.slices[network] != nil {
			continue
		}
		ctx, stop := context.WithCancel(m.base)
		list, err := m.deps.Watch.Slices(ctx, network, m.Notify)
		if err != nil {
			stop()
			return fmt.Errorf("watching the EndpointSlices of network %q: %w", network, err)
		}
		m.slices[network] = &followed[discoveryv1.EndpointSlice]{list, stop}
	}
	return nil
}

// leave ends the watches that no pod needs, and forgets pods that are gone.
func (m *Manager) leave(used, alive map[string]bool, fresh map[string]*Answer) {
	for network, f := range m.slices {
		if !used[network] {
			f.stop()
			delete(m.slices, network)
		}
	}
	if len(used) == 0 && m.services != nil {
		m.services.stop()
		m.services = nil
	}
	maps.DeleteFunc(m.pods, func(id string, _ *served) bool { return !alive[id] })
	m.known.Store(int64(len(m.pods)))
	maps.DeleteFunc(m.answers, func(networks string, _ *Answer) bool { return fresh[networks] == nil })
}

// cluster gathers what pods on these Networks depend on, if it is all known.
func (m *Manager) cluster(v view, networks []string) (*Cluster, bool) {
	services, complete := m.services.list()
	out := &Cluster{
		Services: services, Slices: map[string][]*discoveryv1.EndpointSlice{}, Place: m.deps.Place(),
		Elsewhere: func(network string) bool { return v.elsewhere[network] },
	}
	for _, network := range networks {
		list, ok := m.slices[network].list()
		out.Slices[network], complete = list, complete && ok
	}
	return out, complete
}

// answer is that of now, with backends in the places of the one before.
func (m *Manager) answer(cluster *Cluster, networks []string) *Answer {
	key := strings.Join(networks, ",")
	m.answers[key] = cluster.Answer(networks).after(m.answers[key])
	return m.answers[key]
}
