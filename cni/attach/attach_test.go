// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	gone       map[string]bool // namespaces of pods
	claims     []*v1alpha1.IPClaim
	events     []string

	mu       sync.Mutex
	leases   map[string]netip.Addr
	reported map[string]int
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

func (w *world) BridgeMode(nic string) bool { return w.bridged[nic] }

func (w *world) Attached(_ types.NamespacedName, _ types.UID, sandboxID string, a []podnetworks.Attachment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reported[sandboxID] = len(a)
}

func (w *world) Detached(_ types.UID, sandboxID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.reported, sandboxID)
}

func (w *world) Reserve(_ context.Context, asks []ipam.Ask) ([]ipam.Lease, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []ipam.Lease
	for _, ask := range asks {
		if ask.Network == "full" {
			return nil, errors.New(`network "full" has no free address on this node`)
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

func (w *world) Release(_ context.Context, containerID string, _ ...string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range w.leases {
		if strings.HasPrefix(key, containerID+"/") {
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

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		links: link.NewFake(map[string]int{"eth1": 1500}), parents: []string{"eth1"}, bridged: map[string]bool{"eth1": true},
		namespaces: map[string]map[string]string{"default": {"team": "a"}}, refused: map[string]string{},
		gone: map[string]bool{}, leases: map[string]netip.Addr{}, reported: map[string]int{},
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
func (w *world) open(t *testing.T, state string) {
	t.Helper()
	server, err := NewServer(Config{StateDir: state}, Deps{
		Networks: w, Namespaces: w, Pods: w, Claims: w, Addresses: w, PodLinks: w.links, HostLinks: w.links,
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
	all, err := w.prepare(ctx, &sandbox, networks)
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

func TestAddMakesWhatTheDesignSays(t *testing.T) {
	w := newWorld(t)
	if err := w.add(t.Context(), "c1", both); err != nil {
		t.Fatal(err)
	}
	shim, end := link.ShimName("management", "np-eth1"), link.HostEndName("c1", "net1")
	want := strings.Join([]string{
		"/ns/c1: eth0 macvlan on np-eth1 mac 0a:" + mac(t, w, "management") + " mtu 1500 10.10.0.2/16 fd00:10:10::a0a:2/64 route 0.0.0.0/0 via 10.10.0.1 route ::/0 via fd00:10:10::a0a:1",
		"/ns/c1: net1 veth on np-eth1 mac 0a:" + mac(t, w, "data") + " mtu 1500 10.20.0.2/16",
		"host: np-eth1 bridge port eth1",
		"host: " + shim + " macvlan on np-eth1 mtu 1500",
		"host: " + shim + " address 10.10.0.1/32",
		"host: " + shim + " address fd00:10:10::a0a:1/128",
		"host: " + shim + " route 10.10.0.2 src 10.10.0.1",
		"host: " + shim + " route fd00:10:10::a0a:2 src fd00:10:10::a0a:1",
		"host: " + end + " veth master np-eth1",
		"nft: oifname != " + shim + " saddr [10.10.0.0/16 fd00:10:10::/64] masquerade",
	}, "\n")
	if diff := cmp.Diff(sorted(want), sorted(w.links.String())); diff != "" {
		t.Error(diff)
	}
}

func mac(t *testing.T, w *world, network string) string {
	t.Helper()
	for _, s := range w.snapshot() {
		for i := range s.Interfaces {
			if s.Attachments[i].Name == network {
				return strings.TrimPrefix(s.Interfaces[i].MAC, "0a:")
			}
		}
	}
	t.Fatalf("no interface on %s", network)
	return ""
}

func sorted(text string) []string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	slices.Sort(lines)
	return lines
}

// Every operation of an ADD fails once; the node must look as before.
func TestAddThatFailsAnywhereLeavesNothing(t *testing.T) {
	var operations []string
	w := newWorld(t)
	w.links.FailOn = func(operation string) error { operations = append(operations, operation); return nil }
	if err := w.add(t.Context(), "c1", both); err != nil {
		t.Fatal(err)
	}
	if len(operations) < 5 {
		t.Fatalf("only %v: the test does not see the ADD", operations)
	}
	slices.Sort(operations)
	for _, operation := range slices.Compact(operations) {
		t.Run(operation, func(t *testing.T) {
			w := newWorld(t)
			other := both
			if operation == "masquerade" {
				other = "data" // rules that stand already are not written again
			}
			if err := w.add(t.Context(), "other", other); err != nil {
				t.Fatal(err)
			}
			before, leases, failed := w.links.String(), len(w.leases), false
			w.links.FailOn = func(now string) error {
				if now == operation && !failed {
					failed = true
					return errors.New("injected")
				}
				return nil
			}
			err := w.add(t.Context(), "c1", both)
			if err == nil || !strings.Contains(err.Error(), "injected") {
				t.Fatalf("got %v", err)
			}
			if diff := cmp.Diff(before, w.links.String()); diff != "" {
				t.Error(diff)
			}
			if len(w.leases) != leases {
				t.Errorf("addresses left: %v", w.leases)
			}
			if diff := cmp.Diff([]string{"other.json"}, w.files(t)); diff != "" {
				t.Error(diff)
			}
			w.links.FailOn = nil
			if err := w.add(t.Context(), "c1", both); err != nil {
				t.Errorf("the next try: %v", err)
			}
		})
	}
}

func TestAddWhoseRecordCannotBeWrittenLeavesNothing(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(string(w.records), nil, 0o600); err != nil { // a file where the folder should be
		t.Fatal(err)
	}
	err := w.add(t.Context(), "c1", "data")
	if err == nil || !strings.Contains(err.Error(), "making the folder of sandboxes") {
		t.Errorf("got %v", err)
	}
	if text := w.links.String(); text != "host: np-eth1 bridge port eth1\n" || len(w.leases) > 0 {
		t.Errorf("left: %s%v", text, w.leases)
	}
}

func TestDelFreesAddressesAfterTheLinksAreGone(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"c1", "c2"} {
		if err := w.add(t.Context(), id, both); err != nil {
			t.Fatal(err)
		}
	}
	sandbox := sandboxOf("c1")
	w.links.FailOn = func(operation string) error {
		if operation == "delete eth0" {
			return errors.New("injected")
		}
		return nil
	}
	if err := w.del(t.Context(), &sandbox); err == nil || err.Error() != "injected" {
		t.Errorf("got %v", err)
	}
	if len(w.order) > 0 || len(w.leases) != 4 {
		t.Errorf("addresses were freed although a link stands: %v", w.order)
	}
	w.links.FailOn = nil
	for range 2 {
		if err := w.del(t.Context(), &sandbox); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(w.order[0], "/ns/c1") || !strings.Contains(w.order[0], "/ns/c2") {
		t.Errorf("got %s", w.order[0])
	}
	for _, line := range sorted(w.links.String()) {
		if strings.Contains(line, "c1") || strings.Contains(line, "route 10.10.0.2 ") {
			t.Errorf("left: %s", line)
		}
	}
	sandbox = sandboxOf("c2")
	if err := w.del(t.Context(), &sandbox); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"host: np-eth1 bridge port eth1"}, sorted(w.links.String())); diff != "" {
		t.Errorf("with the last pod: %s", diff)
	}
}

func TestSecondAddOfASandboxIsRefused(t *testing.T) {
	w := newWorld(t)
	if err := w.add(t.Context(), "c1", "data"); err != nil {
		t.Fatal(err)
	}
	err := w.add(t.Context(), "c1", "data")
	if err == nil || !strings.Contains(err.Error(), "has its networks already") {
		t.Errorf("got %v", err)
	}
	if len(w.leases) != 1 {
		t.Errorf("got %v", w.leases)
	}
}

func TestDefaultRouteIsWhereThePodAskedForIt(t *testing.T) {
	w := newWorld(t)
	w.networks["data"].Spec.Gateway = "10.20.0.254"
	w.networks["data"].Spec.Routes = []v1alpha1.Route{{To: "10.0.0.0/8", Via: "10.20.0.253"}, {To: "fd00::/8", Via: "fd00::1"}}
	w.networks["data"].Spec.AdditionalSubnets = []v1alpha1.CIDR{"10.21.0.0/16"}
	if err := w.add(t.Context(), "c1", "- {name: management, ifname: eth0}\n- {name: data, defaultRoute: true}"); err != nil {
		t.Fatal(err)
	}
	text := w.links.String()
	for _, want := range []string{
		"fd00:10:10::a0a:2/64 route 10.96.0.0/16 via 10.10.0.1\n", // eth0: Services over the node, no default
		"10.20.0.2/16 route 10.21.0.0/16 route 10.0.0.0/8 via 10.20.0.253 route 0.0.0.0/0 via 10.20.0.254 take-default keep 10.96.0.0/16\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}

func TestIPv6OnlyNetworkOnEth0(t *testing.T) {
	w := newWorld(t)
	w.networks["six"] = ready("six", v1alpha1.PluginMacvlan, "fd00:66::/112", "")
	if err := w.add(t.Context(), "c1", "six@eth0"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		" mtu 1500 fd00:66::2/112 route ::/0 via fd00:66::1\n", " address fd00:66::1/128\n", " route fd00:66::2 src fd00:66::1\n", " saddr [fd00:66::/112] masquerade\n",
	} {
		if text := w.links.String(); !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}

func TestRestartKeepsWhatStandsAndUndoesTheRest(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"kept", "half", "deleted"} {
		if err := w.add(t.Context(), id, both); err != nil {
			t.Fatal(err)
		}
	}
	half, _ := w.sandbox("half")
	changed := *half
	changed.State = StateAttaching
	if err := w.records.Save(&changed); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(string(w.records), "broken.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	spool := w.config.Spool()
	for _, id := range []string{"deleted", "unknown"} {
		if err := spool.Put(sandboxOf(id)); err != nil {
			t.Fatal(err)
		}
	}
	clear(w.reported)
	w.open(t, w.config.StateDir)
	if err := w.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "before ReplaySpool") {
		t.Errorf("got %v", err)
	}
	if err := w.ReplaySpool(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.restore(t.Context())
	if diff := cmp.Diff(map[string]int{"kept": 2}, w.reported); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"broken.json", "kept.json"}, w.files(t)); diff != "" {
		t.Error(diff)
	}
	if text := w.links.String(); strings.Contains(text, "/ns/half") || strings.Contains(text, "/ns/deleted") || !strings.Contains(text, "/ns/kept") {
		t.Errorf("got %s", text)
	}
	if dels, _, err := spool.List(); err != nil || len(dels) > 0 {
		t.Errorf("left in the spool: %v %v", dels, err)
	}
}

func TestSpooledDelThatFailsIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	if err := w.add(t.Context(), "c1", "data"); err != nil {
		t.Fatal(err)
	}
	if err := w.config.Spool().Put(sandboxOf("c1")); err != nil {
		t.Fatal(err)
	}
	w.open(t, w.config.StateDir)
	w.links.FailOn = func(string) error { return errors.New("injected") }
	if err := w.ReplaySpool(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(w.leases) != 1 {
		t.Error("the address is free although the link stands")
	}
	w.links.FailOn = nil
	w.collectOnce(t.Context(), nil)
	if dels, _, _ := w.config.Spool().List(); len(dels) > 0 || len(w.leases) > 0 || len(w.files(t)) > 0 {
		t.Errorf("left: %v %v %v", dels, w.leases, w.files(t))
	}
}

func TestVanishedSandboxIsFreedWhenSeenTwice(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"c1", "c2"} {
		if err := w.add(t.Context(), id, "data"); err != nil {
			t.Fatal(err)
		}
	}
	w.gone["/ns/c1"] = true
	missing := w.collectOnce(t.Context(), nil)
	if len(w.leases) != 2 {
		t.Fatal("freed at first sight")
	}
	w.gone["/ns/c1"] = false // it was only being made
	missing = w.collectOnce(t.Context(), missing)
	w.gone["/ns/c1"] = true
	missing = w.collectOnce(t.Context(), missing)
	if len(w.leases) != 2 {
		t.Fatal("freed although it was there in between")
	}
	w.collectOnce(t.Context(), missing)
	if diff := cmp.Diff([]string{"c2.json"}, w.files(t)); diff != "" || len(w.leases) != 1 {
		t.Error(diff, w.leases)
	}
}

func TestTheBinarysCopyOfTheAnnotationKey(t *testing.T) {
	if wire.AnnotationNetworks != v1alpha1.AnnotationNetworks {
		t.Errorf("%s is not %s", wire.AnnotationNetworks, v1alpha1.AnnotationNetworks)
	}
}

func TestNewServerNamesWhatIsMissing(t *testing.T) {
	_, err := NewServer(Config{StateDir: "x"}, Deps{})
	if err == nil || err.Error() != "attach.Deps.Networks is missing" {
		t.Errorf("got %v", err)
	}
}
