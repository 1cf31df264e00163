// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// world is what a Manager sees: one Network "blue" and a host in memory.
type world struct {
	*Manager
	links    *link.Fake
	network  v1alpha1.Network
	tunnel   link.Tunnel
	used     []string
	blocks   []*v1alpha1.IPBlock
	complete bool
	watches  []context.Context
	fail     map[string]error
}

func (w *world) Follow(ctx context.Context, _ string, _ func()) (func() ([]*v1alpha1.IPBlock, bool), error) {
	w.watches = append(w.watches, ctx)
	return func() ([]*v1alpha1.IPBlock, bool) { return w.blocks, w.complete }, nil
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		links: link.NewFake(map[string]int{"eth1": 1500}), complete: true, fail: map[string]error{},
		tunnel: link.Tunnel{Device: "eth1", Address: netip.MustParseAddr("192.168.0.1"), MTU: 1500},
		blocks: []*v1alpha1.IPBlock{testBlock("10.7.0.0/30", "a", "192.168.0.1"), testBlock("10.7.0.4/30", "b", "192.168.0.2")},
	}
	w.network = v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: "blue", UID: "u1", Generation: 1},
		Spec:       v1alpha1.NetworkSpec{Plugin: v1alpha1.PluginVXLAN, PhysicalNet: "p", Subnet: "10.7.0.0/24", BlockSize: 4, PluginConfig: vni("42")},
	}
	w.setReady(metav1.ConditionTrue)
	w.used = []string{w.bridge()}
	w.links.FailOn = func(operation string) error {
		word, _, _ := strings.Cut(operation, " ")
		return w.fail[word]
	}
	w.open()
	return w
}

func vni(number string) *apiextensionsv1.JSON {
	return &apiextensionsv1.JSON{Raw: []byte(`{"vni": ` + number + `}`)}
}

// open begins another run of the agent.
func (w *world) open() {
	w.Manager = New("a", Deps{
		Links: w.links, Blocks: w,
		Networks: func() []v1alpha1.Network { return []v1alpha1.Network{w.network} },
		Tunnel:   func(string) (link.Tunnel, bool) { return w.tunnel, w.tunnel.Device != "" },
		Used:     func() []string { return w.used },
	})
}

func (w *world) bridge() string { return link.OverlayBridge(string(w.network.UID)) }

func (w *world) setReady(status metav1.ConditionStatus) {
	w.network.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: status, ObservedGeneration: w.network.Generation}}
}

// state shows the host's lines, with the names of the segment cut short.
func (w *world) state() []string {
	id := strings.TrimPrefix(w.bridge(), "npb")
	return strings.Split(strings.TrimSpace(strings.ReplaceAll(w.links.String(), id, "")), "\n")
}

var standing = []string{
	"fdb: npx 0acd0a070004 dst 192.168.0.2 via eth1", "fdb: npx 0acd0a070005 dst 192.168.0.2 via eth1",
	"fdb: npx 0acd0a070006 dst 192.168.0.2 via eth1", "fdb: npx 0acd0a070007 dst 192.168.0.2 via eth1",
	"fdb: npx 000000000000 dst 192.168.0.2 via eth1",
	"host: npb bridge mtu 1450", "host: npx vxlan id 42 dstport 4789 local 192.168.0.1 dev eth1 mtu 1450 master npb",
}

func (w *world) check(t *testing.T, want []string) {
	t.Helper()
	if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(w.state()))); diff != "" {
		t.Errorf("host (-want +got):\n%s", diff)
	}
}

func TestASegmentComesWithTheFirstPodAndGoesWithTheLast(t *testing.T) {
	w := newWorld(t)
	if err := w.Ensure(t.Context(), &w.network); err != nil {
		t.Fatal(err)
	}
	w.check(t, standing)
	if diff := cmp.Diff([]string{"eth1"}, w.Devices()); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	if len(w.watches) != 1 {
		t.Fatalf("%d watches of the Network's blocks, want 1", len(w.watches))
	}
	if err := w.Ensure(t.Context(), &w.network); err != nil {
		t.Fatal(err)
	}
	if len(w.watches) != 1 {
		t.Errorf("the second pod began another watch")
	}
	w.used = []string{}
	w.sync(t.Context())
	w.check(t, []string{""})
	if w.watches[0].Err() == nil {
		t.Error("the blocks are watched although no pod is left")
	}
}

func TestARestartTakesOverWhatStandsAndRemovesOrphans(t *testing.T) {
	w := newWorld(t)
	if err := w.Ensure(t.Context(), &w.network); err != nil {
		t.Fatal(err)
	}
	orphan := link.OverlayBridge("gone")
	if _, err := w.links.EnsureOverlay(t.Context(), link.Overlay{Bridge: orphan, VNI: 7}); err != nil {
		t.Fatal(err)
	}
	w.open()
	keep := w.used
	w.used = nil
	w.sync(t.Context())
	if len(w.state()) != len(standing)+2 {
		t.Errorf("changed the host before it was known what is used:\n%s", strings.Join(w.state(), "\n"))
	}
	w.used = keep
	w.blocks = append(w.blocks[:1], testBlock("10.7.0.4/30", "c", "192.168.0.3")) // moved in between
	w.sync(t.Context())
	want := slices.Clone(standing)
	for i := range want {
		want[i] = strings.ReplaceAll(want[i], "192.168.0.2", "192.168.0.3")
	}
	w.check(t, want)
}

func TestAFailedChangeIsRepairedFromWhatTheKernelHas(t *testing.T) {
	w := newWorld(t)
	if err := w.Ensure(t.Context(), &w.network); err != nil {
		t.Fatal(err)
	}
	moved := append(w.blocks[:1:1], testBlock("10.7.0.8/30", "b", "192.168.0.2"))
	w.blocks, w.fail["forward"] = moved, errors.New("no buffer space")
	w.programAll(t.Context())
	delete(w.fail, "forward")
	w.programAll(t.Context())
	want := slices.Clone(standing)
	for i, last := range []string{"08", "09", "0a", "0b"} {
		want[i] = "fdb: npx 0acd0a0700" + last + " dst 192.168.0.2 via eth1"
	}
	w.check(t, want)
}

func TestANetworkThatIsNotReadyKeepsItsSegment(t *testing.T) {
	w := newWorld(t)
	if err := w.Ensure(t.Context(), &w.network); err != nil {
		t.Fatal(err)
	}
	w.network.Spec.PluginConfig, w.network.Generation = vni("43"), 2
	w.sync(t.Context())
	w.check(t, standing)
	w.setReady(metav1.ConditionTrue)
	w.sync(t.Context())
	want := slices.Clone(standing)
	want[6] = strings.Replace(want[6], "id 42", "id 43", 1)
	w.check(t, want)
}

func TestANewTunnelAddressMakesTheDeviceAnew(t *testing.T) {
	w := newWorld(t)
	if err := w.Ensure(t.Context(), &w.network); err != nil {
		t.Fatal(err)
	}
	w.tunnel = link.Tunnel{Device: "np-eth1", Address: netip.MustParseAddr("192.168.0.9"), MTU: 1500}
	w.sync(t.Context())
	want := slices.Clone(standing)
	for i := range want {
		want[i] = strings.NewReplacer("via eth1", "via np-eth1", "dev eth1", "dev np-eth1", "local 192.168.0.1", "local 192.168.0.9").Replace(want[i])
	}
	w.check(t, want)
}

func TestANodeWithoutSuchPodsLooksOnce(t *testing.T) {
	w := newWorld(t)
	w.used = []string{}
	looks := 0
	list := w.deps.Networks
	w.deps.Networks = func() []v1alpha1.Network { looks++; return list() }
	for range 3 {
		w.sync(t.Context())
	}
	if looks != 1 {
		t.Errorf("the Networks were listed %d times, want once", looks)
	}
	w.fail["no"] = errors.New("busy") // the removal fails
	w.used = []string{w.bridge()}
	if err := w.Ensure(t.Context(), &w.network); err != nil {
		t.Fatal(err)
	}
	w.used = []string{}
	w.sync(t.Context())
	delete(w.fail, "no")
	w.sync(t.Context())
	w.check(t, []string{""})
}

func TestWithoutATunnelAddressNoPodGetsTheNetwork(t *testing.T) {
	w := newWorld(t)
	w.tunnel = link.Tunnel{}
	err := w.Ensure(t.Context(), &w.network)
	if want := `network "blue": no NIC of this node has an address that a tunnel could end at`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	w.check(t, []string{""})
}

func TestAPodWaitsForThePeersButNotForLong(t *testing.T) {
	w := newWorld(t)
	w.complete = false
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Ensure(ctx, &w.network) }()
	select {
	case err := <-done:
		t.Fatalf("the pod did not wait: %v", err)
	default:
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}
