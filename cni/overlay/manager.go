// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/api/vxlan"
	"github.com/netplane/netplane/cni/link"
)

const (
	// lookEvery covers what nobody tells: a link that somebody removed.
	lookEvery = 30 * time.Second
	// settle gathers the events of blocks: a Network with a thousand of them
	// tells of each when its watch begins.
	settle = 20 * time.Millisecond
	// peersWait is how long the first pod of a Network waits until the peers are
	// known: what it sent before would be lost, and asked for again a second later.
	peersWait = 3 * time.Second
)

// Links changes the host's segments; link.Links does.
type Links interface {
	EnsureOverlay(ctx context.Context, o link.Overlay) (made bool, err error)
	Overlays() ([]string, error)
	RemoveOverlay(ctx context.Context, bridge string) error
	Forwards(bridge string) ([]link.Forward, error)
	ChangeForwards(ctx context.Context, bridge, underlay string, add, remove []link.Forward) error
}

// Blocks follows the IPBlocks of Networks.
type Blocks interface {
	// Follow begins to watch one Network's blocks, until ctx ends, and calls
	// changed for every change. The list is false until it is complete.
	Follow(ctx context.Context, network string, changed func()) (list func() ([]*v1alpha1.IPBlock, bool), err error)
}

// Deps are what a Manager works with; all are required but Clock.
type Deps struct {
	Links  Links
	Blocks Blocks
	// Networks lists all Networks of the cache.
	Networks func() []v1alpha1.Network
	// Tunnel is what this node sends a Network's frames from.
	Tunnel func(network string) (link.Tunnel, bool)
	// Used lists the bridges that pods are, or are about to be, plugged to. It
	// is nil until that is known.
	Used func() []string
	// Clock is for tests; nil is the real one.
	Clock clock.WithTicker
}

// Manager keeps the node's segments. It is safe for concurrent use.
type Manager struct {
	node string
	deps Deps
	// base ends when the Manager is closed; watches hang on it.
	base  context.Context
	close context.CancelFunc
	// wake asks for a look at everything, news for one at the blocks alone.
	wake, news chan struct{}

	mu       sync.Mutex // held while links change
	segments map[string]*segment
	// tidy: what former runs left is gone, so that nothing but segments can be
	// of no use.
	tidy bool
}

// segment is one Network's, by its bridge.
type segment struct {
	network string
	overlay link.Overlay
	plan    *addressing.Plan
	view    View
	list    func() ([]*v1alpha1.IPBlock, bool)
	stop    context.CancelFunc
	// have is the device's table, if known is set.
	have  Table
	known bool
	// strangers were told of.
	strangers []netip.Addr
	// ready is closed when the device forwards for the first time.
	ready chan struct{}
}

// New makes a Manager for the node of that name; nothing runs before Ensure or Run.
func New(node string, deps Deps) *Manager {
	if deps.Clock == nil {
		deps.Clock = clock.RealClock{}
	}
	base, cancel := context.WithCancel(context.Background())
	return &Manager{node: node, deps: deps, base: base, close: cancel, wake: make(chan struct{}, 1), news: make(chan struct{}, 1), segments: map[string]*segment{}}
}

// Notify says that something changed that segments depend on: Networks, NICs,
// or which bridges are used. It never blocks.
func (m *Manager) Notify() { signal(m.wake) }

func (m *Manager) blocksChanged() { signal(m.news) }

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // a signal is already waiting
	}
}

// Run keeps the segments true until ctx ends. The links stay then: pods live on
// without the agent.
func (m *Manager) Run(ctx context.Context) error {
	defer m.close()
	ticker := m.deps.Clock.NewTicker(lookEvery)
	defer ticker.Stop()
	m.sync(ctx)
	for {
		look := m.sync
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		case <-m.wake:
		case <-m.news:
			look = m.programAll
			select {
			case <-ctx.Done():
				return nil
			case <-m.deps.Clock.After(settle):
			}
		}
		look(ctx)
	}
}

// Ensure makes the segment of a Network for a pod that is about to be plugged
// to its bridge, which Used lists already. It waits for a moment until the
// peers are known.
func (m *Manager) Ensure(ctx context.Context, network *v1alpha1.Network) error {
	m.mu.Lock()
	s, err := m.ensure(ctx, network)
	if err == nil {
		err = m.program(ctx, s)
	}
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("network %q: %w", network.Name, err)
	}
	select {
	case <-s.ready:
	case <-m.deps.Clock.After(peersWait):
		klog.FromContext(ctx).Info("A pod starts before the other nodes of its vxlan network are known", "network", network.Name)
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// Devices lists the devices that the segments send from.
func (m *Manager) Devices() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, s := range m.segments {
		out = append(out, s.overlay.Tunnel.Device)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// sync makes the segments that pods are on, and removes all others, those of a
// former run of the agent too.
func (m *Manager) sync(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	used := m.deps.Used()
	if used == nil {
		return
	}
	if len(used)+len(m.segments) == 0 && m.tidy {
		return // a node without such pods pays nothing
	}
	networks := m.deps.Networks()
	for i := range networks {
		n := &networks[i]
		if n.Spec.Plugin != v1alpha1.PluginVXLAN || !slices.Contains(used, link.OverlayBridge(string(n.UID))) {
			continue
		}
		s, err := m.ensure(ctx, n)
		if err == nil {
			err = m.program(ctx, s)
		}
		tell(ctx, n.Name, err)
	}
	if err := m.prune(ctx, used); err != nil {
		klog.FromContext(ctx).Error(err, "Kept links of a vxlan network that no pod uses")
	}
}

func (m *Manager) programAll(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.segments {
		tell(ctx, s.network, m.program(ctx, s))
	}
}

// tell is where errors end; the next look tries again.
func tell(ctx context.Context, network string, err error) {
	if err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "Pods of a vxlan network may not reach all others", "network", network)
	}
}

// ensure makes the segment as its Network wants it. As long as a Network is not
// Ready with its present spec, the segment stays as it was: its new VNI could
// be another's.
func (m *Manager) ensure(ctx context.Context, n *v1alpha1.Network) (*segment, error) {
	bridge := link.OverlayBridge(string(n.UID))
	s := m.segments[bridge]
	overlay, plan, err := m.design(n, bridge)
	if err != nil {
		return nil, err
	}
	if s != nil && !ready(n) {
		overlay.VNI, overlay.Port = s.overlay.VNI, s.overlay.Port
	}
	made, err := m.deps.Links.EnsureOverlay(ctx, overlay)
	if err != nil {
		return nil, err
	}
	if s == nil {
		s = &segment{network: n.Name, ready: make(chan struct{})}
		follow, stop := context.WithCancel(m.base)
		if s.list, err = m.deps.Blocks.Follow(follow, n.Name, m.blocksChanged); err != nil {
			stop()
			return nil, fmt.Errorf("watching the IPBlocks: %w", err)
		}
		s.stop = stop
		m.segments[bridge] = s
		klog.FromContext(ctx).Info("Made a vxlan segment", "network", n.Name, "vni", overlay.VNI, "bridge", bridge,
			"device", overlay.Tunnel.Device, "address", overlay.Tunnel.Address)
	}
	if made || overlay != s.overlay {
		s.known = false
	}
	s.overlay, s.plan = overlay, plan
	s.view = View{Node: m.node, NetworkUID: n.UID, Local: overlay.Tunnel.Address}
	return s, nil
}

func (m *Manager) design(n *v1alpha1.Network, bridge string) (link.Overlay, *addressing.Plan, error) {
	settings, err := vxlan.SettingsOf(n)
	if err != nil {
		return link.Overlay{}, nil, err
	}
	plan, err := addressing.NewPlan(n.Name, &n.Spec)
	if err != nil {
		return link.Overlay{}, nil, err
	}
	tunnel, ok := m.deps.Tunnel(n.Name)
	if !ok {
		return link.Overlay{}, nil, errors.New("no NIC of this node has an address that a tunnel could end at")
	}
	return link.Overlay{
		Bridge: bridge, VNI: settings.VNI, Port: settings.Port, Tunnel: tunnel, MTU: vxlan.MTU(tunnel.MTU, tunnel.Address),
	}, plan, nil
}

// ready tells whether the Network is Ready as its spec stands.
func ready(n *v1alpha1.Network) bool {
	condition := apimeta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionReady)
	return condition != nil && condition.Status == metav1.ConditionTrue && condition.ObservedGeneration == n.Generation
}

// program has the device forward as the blocks say. What the device has is
// read when it is not known: at first, and after an error.
func (m *Manager) program(ctx context.Context, s *segment) error {
	blocks, complete := s.list()
	if !complete {
		return nil // we are called again
	}
	want, strangers := s.view.Desired(blocks)
	if !slices.Equal(strangers, s.strangers) {
		klog.FromContext(ctx).Info("Nodes of a vxlan network have tunnel addresses that this node cannot send to: give all NICs of the physical network addresses of one family",
			"network", s.network, "own", s.overlay.Tunnel.Address, "theirs", strangers)
		s.strangers = strangers
	}
	changes := Diff(s.have, want, s.plan)
	if !s.known {
		found, err := m.deps.Links.Forwards(s.overlay.Bridge)
		if err != nil {
			return err
		}
		changes = Repair(found, want, s.plan)
	}
	s.known = false
	if err := m.deps.Links.ChangeForwards(ctx, s.overlay.Bridge, s.overlay.Tunnel.Device, changes.Add, changes.Remove); err != nil {
		return err
	}
	s.have, s.known = want, true
	select {
	case <-s.ready:
	default:
		close(s.ready)
	}
	return nil
}

// prune removes what no pod uses.
func (m *Manager) prune(ctx context.Context, used []string) error {
	inUse := func(bridge string) bool { return slices.Contains(used, bridge) }
	if m.tidy && !slices.ContainsFunc(slices.Collect(maps.Keys(m.segments)), func(bridge string) bool { return !inUse(bridge) }) {
		return nil
	}
	found, err := m.deps.Links.Overlays()
	if err != nil {
		return err
	}
	var failed []error
	for _, bridge := range found {
		if inUse(bridge) {
			continue
		}
		if err := m.deps.Links.RemoveOverlay(ctx, bridge); err != nil {
			failed = append(failed, err)
			continue
		}
		klog.FromContext(ctx).Info("Removed a vxlan segment that no pod uses", "bridge", bridge)
	}
	for bridge, s := range m.segments {
		if !inUse(bridge) {
			s.stop()
			delete(m.segments, bridge)
		}
	}
	m.tidy = len(failed) == 0
	return errors.Join(failed...)
}
