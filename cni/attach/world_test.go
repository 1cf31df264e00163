// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// world is everything around a Server, in memory.
type world struct {
	*Server
	links      *link.Fake
	networks   map[string]*v1alpha1.Network
	namespaces map[string]map[string]string
	refused    map[string]string
	parents    []string
	bridged    map[string]bool
	exclusive  []string
	tunnel     link.Tunnel
	gone       map[string]bool // namespaces of pods
	claims     []*v1alpha1.IPClaim
	full       []string // networks without a free address
	events     []string
	// asked are the annotations of running pods, by name: as the cache shows them,
	// and as they are.
	asked, askedLive map[string]string
	// step is called before and after everything that a crash may separate.
	step func(string)

	mu       sync.Mutex
	leases   map[string]netip.Addr
	reported map[string]int
	uses     map[string]string
	// order notes what must happen in an order: links gone, then addresses free.
	order []string
}

func (w *world) Get(name string) (*v1alpha1.Network, bool) { n, ok := w.networks[name]; return n, ok }

func (w *world) Labels(name string) (map[string]string, bool) {
	l, ok := w.namespaces[name]
	return l, ok
}

func (w *world) Annotations(_, name string) (map[string]string, bool) {
	return map[string]string{v1alpha1.AnnotationNetworks: "asked by " + name}, name != "unknown"
}

func (w *world) OfPod(uid types.UID) []*v1alpha1.IPClaim {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.claims), func(c *v1alpha1.IPClaim) bool { return c.Status.PodUID != uid })
}

func (w *world) Parents(string) []string { return w.parents }

func (w *world) Refusal(network string) (reason, message string, refused bool) {
	message, refused = w.refused[network]
	return "PluginConflict", message, refused
}

func (w *world) Tunnel(string) (link.Tunnel, bool) { return w.tunnel, w.tunnel.Device != "" }

func (w *world) Bridged(nic string, n *v1alpha1.Network) (bridged bool, refusal string) {
	if n.Spec.Plugin == v1alpha1.PluginBridge && !w.bridged[nic] {
		return false, "NIC " + nic + " is not in bridge mode"
	}
	return w.bridged[nic], ""
}

func (w *world) Exclusive(string) []link.Device {
	var out []link.Device
	for _, name := range w.exclusive {
		out = append(out, link.Device{Name: name, Sysfs: link.Hardware{PCIAddress: "0000:3b:00." + name[len(name)-1:]}})
	}
	return out
}

func (w *world) Attached(_ types.NamespacedName, _ types.UID, sandboxID string, a []podnetworks.Attachment, uses []podnetworks.Use) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reported[sandboxID] = len(a)
	w.uses[sandboxID] = "unknown"
	if uses != nil {
		w.uses[sandboxID] = podnetworks.FormatAttached(uses)
	}
}

func (w *world) Detached(_ types.UID, sandboxID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.reported, sandboxID)
}

func (w *world) Networks(_ context.Context, pod types.NamespacedName, uid types.UID, fresh bool) (string, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text, known := w.asked[pod.Name]
	if live, differs := w.askedLive[pod.Name]; fresh && differs {
		text = live
	}
	return text, known && string(uid) == strings.Replace(pod.Name, "pod-", "uid-", 1), nil
}

func (w *world) Plugged(_ types.NamespacedName, _ types.UID, note string) {
	w.event("plugged: " + note)
}
func (w *world) Refused(_ types.NamespacedName, _ types.UID, note string) {
	w.event("refused: " + note)
}

func (w *world) event(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, text)
}

func (w *world) stepped(name string) {
	if w.step != nil {
		w.step(name)
	}
}

// podLinks are the world's, with steps.
type podLinks struct{ w *world }

func (p podLinks) Add(ctx context.Context, netns string, specs ...link.Interface) error {
	p.w.stepped("before add")
	defer p.w.stepped("after add")
	return p.w.links.Add(ctx, netns, specs...)
}

func (p podLinks) Announce(ctx context.Context, netns string, specs ...link.Interface) error {
	return p.w.links.Announce(ctx, netns, specs...)
}

func (p podLinks) Delete(ctx context.Context, netns string, specs ...link.Interface) error {
	p.w.stepped("before delete")
	defer p.w.stepped("after delete")
	return p.w.links.Delete(ctx, netns, specs...)
}

func (p podLinks) Check(ctx context.Context, netns string, spec link.Interface) error {
	return p.w.links.Check(ctx, netns, spec)
}

func (w *world) Reserve(_ context.Context, asks []ipam.Ask) ([]ipam.Lease, error) {
	w.stepped("before reserve")
	defer w.stepped("after reserve")
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []ipam.Lease
	for _, ask := range asks {
		if slices.Contains(w.full, ask.Network) {
			return nil, fmt.Errorf("network %q has no free address on this node", ask.Network)
		}
		spec := w.networks[ask.Network].Spec
		block := netip.MustParsePrefix(string(spec.Subnet)).Addr()
		if ask.Fixed.IsValid() {
			w.leases[ask.ContainerID+"/"+ask.IfName] = ask.Fixed
			lease := ipam.Lease{Owner: ask.Owner, Network: ask.Network, NetworkUID: ask.NetworkUID, Address: ask.Fixed, Fixed: true}
			if ask.Anchor {
				lease.Block = netip.PrefixFrom(block, 26)
			}
			out = append(out, lease)
			continue
		}
		address, has := w.leases[ask.ContainerID+"/"+ask.IfName]
		if !has {
			address = block.Next()
		}
		for !has && slices.Contains(values(w.leases), address) {
			address = address.Next()
		}
		w.leases[ask.ContainerID+"/"+ask.IfName] = address
		out = append(out, ipam.Lease{Owner: ask.Owner, Network: ask.Network, Address: address.Next(), Block: netip.PrefixFrom(block, 26)})
	}
	slices.Reverse(out) // the order of leases is not promised
	return out, nil
}

// Available is Reserve without a trace.
func (w *world) Available(asks []ipam.Ask) error {
	for _, ask := range asks {
		if slices.Contains(w.full, ask.Network) {
			return fmt.Errorf("network %q has no free address on this node", ask.Network)
		}
		w.mu.Lock()
		for key, address := range w.leases {
			if id, name, _ := strings.Cut(key, "/"); ask.Fixed.IsValid() && address == ask.Fixed {
				w.mu.Unlock()
				return &ipam.FixedInUseError{Lease: ipam.Lease{Owner: ipam.Owner{ContainerID: id, IfName: name}, Network: ask.Network, Address: address}}
			}
		}
		w.mu.Unlock()
	}
	return nil
}

func (w *world) Release(_ context.Context, containerID string, names ...string) error {
	w.stepped("before release")
	defer w.stepped("after release")
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range w.leases {
		if name, of := strings.CutPrefix(key, containerID+"/"); of && (len(names) == 0 || slices.Contains(names, name)) {
			delete(w.leases, key)
		}
	}
	w.order = append(w.order, "release with links:\n"+w.links.String())
	return nil
}

func (w *world) PutAside(lease ipam.Lease) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := lease.ContainerID + "/" + lease.IfName
	w.leases["aside/"+lease.Address.String()] = w.leases[key]
	delete(w.leases, key)
	return nil
}

func (w *world) AddressTaken(pod types.NamespacedName, uid types.UID, note string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf("%s %s: %s", pod, uid, note))
}

func values(m map[string]netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

func ready(name, plugin string, subnet, subnet6 v1alpha1.CIDR) *v1alpha1.Network {
	return &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Generation: 2},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "phy-net0", Plugin: plugin, Subnet: subnet, Subnet6: subnet6},
		Status: v1alpha1.NetworkStatus{Conditions: []metav1.Condition{{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady, ObservedGeneration: 2,
		}}},
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{
		links: link.NewFake(map[string]int{"eth1": 1500}), full: []string{"full"}, parents: []string{"eth1"}, bridged: map[string]bool{"eth1": true},
		namespaces: map[string]map[string]string{"default": {"team": "a"}}, refused: map[string]string{},
		gone: map[string]bool{}, leases: map[string]netip.Addr{}, asked: map[string]string{}, askedLive: map[string]string{}, reported: map[string]int{}, uses: map[string]string{},
		networks: map[string]*v1alpha1.Network{
			"management": ready("management", v1alpha1.PluginMacvlan, "10.10.0.0/16", "fd00:10:10::/64"),
			"data":       ready("data", v1alpha1.PluginBridge, "10.20.0.0/16", ""),
			"full":       ready("full", v1alpha1.PluginBridge, "10.30.0.0/16", ""),
		},
	}
	w.open(t, t.TempDir())
	return w
}

// open makes the server, as an agent that starts does.
func (w *world) open(t testing.TB, state string) {
	t.Helper()
	server, err := NewServer(Config{StateDir: state}, Deps{
		Networks: w, Namespaces: w, Pods: w, Running: w, Claims: w, Addresses: w, PodLinks: podLinks{w}, HostLinks: w.links,
		NICs: w.links, Parents: w.links,
		Prober: w.links, Taken: w, Reporter: w,
		Topology:     func() Topology { return w },
		ServiceCIDRs: func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")} },
		NetNSExists:  func(path string) bool { return !w.gone[path] },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Server = server
}

func sandboxOf(id string) wire.Sandbox {
	return wire.Sandbox{ContainerID: id, NetNS: "/ns/" + id, PodNamespace: "default", PodName: "pod-" + id, PodUID: "uid-" + id}
}

// add does what a session does between Prepare and the answer to Commit.
func (w *world) add(ctx context.Context, id, networks string) error {
	sandbox := sandboxOf(id)
	all, err := w.prepare(ctx, &sandbox, networks, nil)
	if err != nil {
		return err
	}
	_, _, err = w.commit(ctx, &sandbox, all, nil)
	return err
}

func (w *world) files(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(string(w.records))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

const both = "management@eth0,data@net1"
