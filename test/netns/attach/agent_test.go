// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/attach"
	"github.com/netplane/netplane/cni/delegate"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// agent is a node's agent without an API server: real links, real addresses.
type agent struct {
	node  *space
	state string
	links *link.Links
	ipam  *ipam.Manager
	// stop ends the server and waits for it.
	stop   func()
	server *attach.Server

	networks map[string]*v1alpha1.Network
	bridged  bool
	// delegates may be nil: then only built-in plugins run.
	delegates *delegate.Library
	// nads are NetworkAttachmentDefinitions by namespace/name; their plugins are
	// allowed to be bridge, host-local, portmap and bandwidth.
	nads map[string]string
	// exclusive are the NICs that pods may have for themselves.
	exclusive []string
	// overlays may be nil: then there are no vxlan Networks, and no tunnel.
	overlays attach.Overlays
	tunnel   link.Tunnel
	services []netip.Prefix
	podNotes map[string]map[string]string
	claims   []*v1alpha1.IPClaim
	clock    *laterClock

	mu       sync.Mutex
	reported map[string][]podnetworks.Attachment
	taken    []string
	// asked are the annotations of running pods, by name; others never change.
	asked   map[string]string
	plugged []string
}

// laterClock is the real one, in which sandboxes may be older than they are.
type laterClock struct {
	clock.RealClock
	seconds atomic.Int64
}

func (c *laterClock) Since(t time.Time) time.Duration {
	return c.RealClock.Since(t) + time.Duration(c.seconds.Load())*time.Second
}

// Networks implements attach.Running, as do Plugged and Refused.
func (a *agent) Networks(_ context.Context, pod types.NamespacedName, _ types.UID, _ bool) (annotation string, known bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	annotation, known = a.asked[pod.Name]
	return annotation, known, nil
}

func (a *agent) Plugged(_ types.NamespacedName, _ types.UID, note string) { a.notePlug(note) }

func (a *agent) Refused(_ types.NamespacedName, _ types.UID, note string) {
	a.notePlug("refused: " + note)
}

func (a *agent) notePlug(note string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.plugged = append(a.plugged, note)
}

// change gives a running pod another annotation, and waits until the agent has
// said what became of it.
func (a *agent) change(t *testing.T, id, networks string) (note string) {
	t.Helper()
	a.mu.Lock()
	a.asked["pod-"+id], a.plugged = networks, nil
	a.mu.Unlock()
	a.server.PodChanged(types.UID("uid-" + id))
	eventually(t, "the agent follows "+networks, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.plugged) == 0 {
			return false
		}
		note = a.plugged[0]
		return true
	})
	return note
}

func (a *agent) Get(name string) (*v1alpha1.Network, bool) { n, ok := a.networks[name]; return n, ok }

func (a *agent) Config(_ context.Context, namespace, name string) (string, error) {
	return a.nads[namespace+"/"+name], nil
}

func (a *agent) Labels(string) (map[string]string, bool) { return nil, true }

func (a *agent) Annotations(_, name string) (map[string]string, bool) {
	notes, ok := a.podNotes[name]
	return notes, ok
}

func (a *agent) OfPod(types.UID) []*v1alpha1.IPClaim { return a.claims }

func (a *agent) Parents(string) []string { return []string{"eth1"} }

func (a *agent) Refusal(string) (reason, message string, refused bool) { return "", "", false }

func (a *agent) Tunnel(string) (link.Tunnel, bool) { return a.tunnel, a.tunnel.Device != "" }

func (a *agent) Bridged(string, *v1alpha1.Network) (bridged bool, refusal string) {
	return a.bridged, ""
}

func (a *agent) Exclusive(string) []link.Device {
	var out []link.Device
	for _, name := range a.exclusive {
		out = append(out, link.Device{Name: name})
	}
	return out
}

func (a *agent) Attached(_ types.NamespacedName, _ types.UID, sandboxID string, attachments []podnetworks.Attachment, _ []podnetworks.Use) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reported[sandboxID] = attachments
}

func (a *agent) AddressTaken(_ types.NamespacedName, _ types.UID, note string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.taken = append(a.taken, note)
}

func (a *agent) Detached(_ types.UID, sandboxID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.reported, sandboxID)
}

func (a *agent) report(sandboxID string) []podnetworks.Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.reported[sandboxID])
}

func network(name, plugin string, change func(*v1alpha1.NetworkSpec)) *v1alpha1.Network {
	n := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Generation: 1},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "phy-net0", Plugin: plugin, Subnet: "10.10.0.0/16", Subnet6: "fd00:10:10::/64"},
		Status: v1alpha1.NetworkStatus{Conditions: []metav1.Condition{{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady, ObservedGeneration: 1,
		}}},
	}
	if change != nil {
		change(&n.Spec)
	}
	return n
}

// newAgent makes an agent with one block of each Network; start serves.
func newAgent(t *testing.T, node *space, networks ...*v1alpha1.Network) *agent {
	t.Helper()
	// A unix socket's path has at most 107 bytes, which t.TempDir may exceed.
	state, err := os.MkdirTemp("", "np")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	a := &agent{
		node: node, state: state, links: openLinks(t, node), networks: map[string]*v1alpha1.Network{},
		services: prefixes("10.96.0.0/16 fd00:10:96::/112"), podNotes: map[string]map[string]string{},
		reported: map[string][]podnetworks.Attachment{}, asked: map[string]string{}, stop: func() {},
		clock: &laterClock{},
	}
	for _, n := range networks {
		a.networks[n.Name] = n
		a.bridged = a.bridged || n.Spec.Plugin == v1alpha1.PluginBridge
	}
	a.address(t, networks...)
	t.Cleanup(func() { _ = a.ipam.Close() })
	t.Cleanup(func() { a.stop() })
	return a
}

// address gives the agent its journal, with what an agent before wrote there,
// and a block of each network.
func (a *agent) address(t *testing.T, networks ...*v1alpha1.Network) {
	t.Helper()
	a.ipam = ipam.New(ipam.Config{JournalPath: filepath.Join(a.state, "addresses.journal"), Wait: 50 * time.Millisecond})
	must(t, a.ipam.Replay(func(ipam.Lease) bool { return true }))
	for i, n := range networks {
		if n.Spec.Subnet == "" {
			continue
		}
		plan, err := addressing.NewPlan(n.Name, &n.Spec)
		must(t, err)
		base := plan.Subnets()[0].Addr().As4()
		base[2] = byte(i + 1)
		a.ipam.SetBlocks(n.Name, n.UID, plan, []ipam.Block{{Prefix: netip.PrefixFrom(netip.AddrFrom4(base), 26), UID: "b"}})
	}
}

func (a *agent) socket() string { return attach.Config{StateDir: a.state}.Socket() }

// start makes a new server, as an agent that starts does.
func (a *agent) start(t *testing.T) {
	t.Helper()
	deps := attach.Deps{
		Networks: a, Namespaces: a, Pods: a, Running: a, Claims: a, Addresses: a.ipam, PodLinks: a.links, HostLinks: a.links, NICs: a.links, Parents: a.links, Prober: a.links, Taken: a, Reporter: a,
		Topology:     func() attach.Topology { return a },
		ServiceCIDRs: func() []netip.Prefix { return a.services },
		Clock:        a.clock,
	}
	if a.delegates != nil {
		deps.Delegates, deps.Foreign, deps.Definitions = a.delegates, a.links, a
	}
	deps.Overlays = a.overlays
	server, err := attach.NewServer(attach.Config{StateDir: a.state, NADPluginTypes: []string{"bridge", "host-local", "portmap", "bandwidth"}}, deps)
	must(t, err)
	a.server = server
	must(t, server.ReplaySpool(t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	a.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		a.stop = func() {}
	}
	eventually(t, "the socket is served", func() bool {
		client, err := wire.Dial(t.Context(), a.socket())
		if err == nil {
			_ = client.Close()
		}
		return err == nil
	})
}

func sandboxOf(id string, pod *space) wire.Sandbox {
	return wire.Sandbox{ContainerID: id, NetNS: pod.path, PodNamespace: "default", PodName: "pod-" + id, PodUID: "uid-" + id}
}

// add runs both rounds of an ADD.
func (a *agent) add(t *testing.T, sandbox wire.Sandbox, networks string) error {
	t.Helper()
	client, err := wire.Dial(t.Context(), a.socket())
	must(t, err)
	defer func() { _ = client.Close() }()
	if _, err := client.Call(t.Context(), wire.Request{Op: wire.OpPrepare, Sandbox: sandbox, Networks: networks}); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	_, err = client.Call(t.Context(), wire.Request{Op: wire.OpCommit, Sandbox: sandbox})
	return err
}

func (a *agent) call(t *testing.T, request wire.Request) error {
	t.Helper()
	client, err := wire.Dial(t.Context(), a.socket())
	must(t, err)
	defer func() { _ = client.Close() }()
	_, err = client.Call(t.Context(), request)
	return err
}

func (a *agent) del(t *testing.T, sandbox wire.Sandbox) error {
	t.Helper()
	return a.call(t, wire.Request{Op: wire.OpDel, Sandbox: sandbox})
}

// nothingLeft compares the node with what it had before its pods.
func (a *agent) nothingLeft(t *testing.T, links ...string) {
	t.Helper()
	if leases := a.ipam.Leases(); len(leases) > 0 {
		t.Errorf("addresses left: %v", leases)
	}
	if got := a.node.links(t); !slices.Equal(got, links) {
		t.Errorf("links left: %v, want %v", got, links)
	}
	for _, family := range []int{2, 10} {
		if routes := a.node.routes(t, family); len(routes) > 0 {
			t.Errorf("routes left: %v", routes)
		}
	}
	records, _, err := attach.Sandboxes(attach.Config{StateDir: a.state}.Sandboxes()).Load()
	if err != nil || len(records) > 0 {
		t.Errorf("records left: %v, %v", records, err)
	}
	if rules := nftRules(t, a.node); rules != 0 {
		t.Errorf("%d masquerade rules left", rules)
	}
}
