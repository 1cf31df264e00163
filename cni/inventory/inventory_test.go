// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2/ktesting"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

const nodeName = "worker"

// fakeLinks is a kernel whose links a test sets.
type fakeLinks struct {
	mu      sync.Mutex
	devices []link.Device
	err     error
	lacks   string
	changes chan struct{}
}

func (f *fakeLinks) set(devices []link.Device) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.devices = devices
}

func (f *fakeLinks) List() ([]link.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.devices, f.err
}

func (f *fakeLinks) Watch(context.Context) (<-chan struct{}, error) { return f.changes, nil }

func (f *fakeLinks) Supports(kind string) (bool, error) { return kind != f.lacks, nil }

// fakeHeld holds what a test says.
type fakeHeld struct {
	held      []v1alpha1.HeldAddresses
	conflicts []v1alpha1.BlockConflict
}

func (f *fakeHeld) Held() []v1alpha1.HeldAddresses { return f.held }

func (f *fakeHeld) Conflicts() []v1alpha1.BlockConflict { return f.conflicts }

// bench is an Inventory with everything around it faked.
type bench struct {
	*Inventory

	ctx    context.Context
	clock  *clocktesting.FakeClock
	links  *fakeLinks
	held   *fakeHeld
	client client.WithWatch
	pace   *pace
	file   string
	writes int
	fail   error
}

func newBench(t *testing.T, objects ...client.Object) *bench {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	b := &bench{
		clock: clocktesting.NewFakeClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)),
		links: &fakeLinks{changes: make(chan struct{}, 1)},
		held:  &fakeHeld{},
		file:  filepath.Join(t.TempDir(), "physical-network-map.yaml"),
	}
	_, b.ctx = ktesting.NewTestContext(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName, UID: "node-1"}}
	b.client = fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.NodeNetwork{}).
		WithObjects(append(objects, node)...).
		WithInterceptorFuncs(interceptor.Funcs{
			SubResourceApply: func(ctx context.Context, c client.Client, sub string, obj runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
				if b.fail != nil {
					return b.fail
				}
				b.writes++
				return c.SubResource(sub).Apply(ctx, obj, opts...)
			},
		}).Build()
	b.pace = newPace(b.clock)
	var err error
	b.Inventory, err = New(Config{NodeName: nodeName, MapFile: b.file}, Deps{Links: b.links, Held: b.held, Client: b.client, Clock: b.clock})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(b.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) shown(t *testing.T) *v1alpha1.NodeNetwork {
	t.Helper()
	var out v1alpha1.NodeNetwork
	if err := b.client.Get(t.Context(), types.NamespacedName{Name: nodeName}, &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

// summary renders a NodeNetwork in one line per fact.
func summary(n *v1alpha1.NodeNetwork) string {
	var out strings.Builder
	for _, p := range n.Status.PhysicalNetworks {
		fmt.Fprintf(&out, "%s %v ready=%t\n", p.Name, p.Interfaces, p.Ready)
	}
	for _, h := range n.Status.Held {
		fmt.Fprintf(&out, "held %s %d %s\n", h.Network, h.Count, h.PodUID)
	}
	for _, r := range n.Status.Refused {
		fmt.Fprintf(&out, "refused %s %s\n", r.Network, r.Reason)
	}
	for _, c := range n.Status.Conflicts {
		fmt.Fprintf(&out, "conflict %s %s %d %v\n", c.Block, c.OtherNode, c.Addresses, c.Pods)
	}
	for _, c := range n.Status.Conditions {
		if c.Reason == v1alpha1.ReasonNoBlockConflict {
			continue // as most tests have it; see TestConflictsArePublished
		}
		fmt.Fprintf(&out, "%s %s %s\n", c.Type, c.Status, c.Reason)
	}
	return out.String()
}

func (b *bench) want(t *testing.T, facts ...string) {
	t.Helper()
	if diff := cmp.Diff(lines(facts...), summary(b.shown(t))); diff != "" {
		t.Errorf("NodeNetwork (-want +got):\n%s", diff)
	}
}

const goodMap = "provider: [{alias: phy-net0, ref_nic: eth1}]"

func TestSyncCreatesTheNodeNetworkOwnedByItsNode(t *testing.T) {
	b := newBench(t)
	b.write(t, goodMap)
	b.links.set(devices(t, "eth1 veth up addr=192.0.2.7/24"))
	if err := b.Sync(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.want(t, "phy-net0 [eth1] ready=true", "InventoryReady True InventoryRead")
	got := b.shown(t)
	wantOwner := []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: nodeName, UID: "node-1"}}
	if diff := cmp.Diff(wantOwner, got.OwnerReferences); diff != "" {
		t.Errorf("owner (-want +got):\n%s", diff)
	}
	wantNIC := []v1alpha1.NodeInterfaceStatus{{Name: "eth1", MAC: "02:00:00:00:00:01", MTU: 1500, Driver: "veth", Addresses: []string{"192.0.2.7/24"}, State: v1alpha1.OperStateUp}}
	if diff := cmp.Diff(wantNIC, got.Status.Interfaces); diff != "" {
		t.Errorf("interfaces (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"eth1"}, b.Current().Parents("phy-net0")); diff != "" {
		t.Errorf("parents (-want +got):\n%s", diff)
	}
}

func TestStatusFollowsTheNIC(t *testing.T) {
	b := newBench(t)
	b.write(t, goodMap)
	for _, step := range []struct {
		devices []string
		want    string
	}{
		{[]string{"eth1 veth up"}, "phy-net0 [eth1] ready=true"},
		{[]string{"eth1 veth down"}, "phy-net0 [eth1] ready=false"},
		{nil, "phy-net0 [eth1] ready=false"},
		{[]string{"eth1 veth up"}, "phy-net0 [eth1] ready=true"},
	} {
		b.links.set(devices(t, step.devices...))
		b.clock.Step(publishEvery)
		b.step(b.ctx, true, b.pace)
		b.want(t, step.want, "InventoryReady True InventoryRead")
	}
}

func TestChangesAreWrittenAtOnceAndThenOnceASecond(t *testing.T) {
	b := newBench(t)
	b.write(t, goodMap)
	up, down := devices(t, "eth1 veth up"), devices(t, "eth1 veth down")
	flap := func() {
		b.links.set(down)
		b.step(b.ctx, true, b.pace)
		b.links.set(up)
		b.step(b.ctx, true, b.pace)
	}
	b.links.set(up)
	b.step(b.ctx, true, b.pace)
	b.want(t, "phy-net0 [eth1] ready=true", "InventoryReady True InventoryRead")
	if b.writes != 1 {
		t.Fatalf("%d writes, want 1 at once", b.writes)
	}
	for range 5 {
		flap()
	}
	b.links.set(down)
	b.step(b.ctx, true, b.pace)
	if b.writes != publishBurst || b.pace.due() == nil {
		t.Fatalf("%d writes in one moment, want %d and another put off", b.writes, publishBurst)
	}
	if b.Current().physicalNetworks[0].Ready {
		t.Error("the agent itself must know at once")
	}
	b.clock.Step(publishEvery)
	select {
	case <-b.pace.due():
	default:
		t.Fatal("the write that was put off is not due")
	}
	b.step(b.ctx, false, b.pace)
	b.want(t, "phy-net0 [eth1] ready=false", "InventoryReady True InventoryRead")
	before := b.writes
	for range 10 {
		flap()
		b.clock.Step(publishEvery)
	}
	if got := b.writes - before; got < 9 || got > 11 {
		t.Errorf("%d writes in 10 s of a NIC that comes and goes, want one a second", got)
	}
	b.clock.Step(time.Minute)
	b.step(b.ctx, true, b.pace)
	before = b.writes
	for range 3 {
		b.clock.Step(rereadEvery)
		b.step(b.ctx, true, b.pace)
	}
	if b.writes != before {
		t.Errorf("%d writes, want none: nothing changed since", b.writes-before)
	}
}

func TestHeldAddressesArePublished(t *testing.T) {
	b := newBench(t)
	b.step(b.ctx, true, b.pace)
	b.held.held = []v1alpha1.HeldAddresses{{Network: "data", Count: 2, PodUID: "p1"}}
	b.clock.Step(publishEvery)
	b.step(b.ctx, false, b.pace)
	b.want(t, "held data 2 p1", "InventoryReady True InventoryRead")
	b.held.held = nil
	b.clock.Step(publishEvery)
	b.step(b.ctx, false, b.pace)
	b.want(t, "InventoryReady True InventoryRead")
}

func TestAMapWithAnErrorLeavesTheLastGoodOneInForce(t *testing.T) {
	b := newBench(t)
	b.write(t, goodMap)
	b.links.set(devices(t, "eth1 veth up"))
	b.step(b.ctx, true, b.pace)
	before := b.shown(t).Status.Conditions[0].LastTransitionTime

	b.write(t, "provider: [{alias: phy_net0, ref_nic: eth1}]")
	b.clock.Step(time.Minute)
	b.step(b.ctx, true, b.pace)
	b.want(t, "phy-net0 [eth1] ready=true", "InventoryReady False InvalidMap")
	c := b.shown(t).Status.Conditions[0]
	if want := b.file + `: provider entry 1: alias "phy_net0" is no DNS label, as a PhysicalNetwork's name must be: use "phy-net0"`; c.Message != want {
		t.Errorf("message %q, want %q", c.Message, want)
	}
	if !c.LastTransitionTime.After(before.Time) {
		t.Errorf("transition at %s, want after %s", c.LastTransitionTime, before)
	}

	b.write(t, "provider: [{alias: phy-net1, ref_nic: eth1}]")
	b.clock.Step(time.Minute)
	b.step(b.ctx, true, b.pace)
	b.want(t, "phy-net1 [eth1] ready=true", "InventoryReady True InventoryRead")
}

func TestAMapWithAnErrorFromTheStartMapsNothing(t *testing.T) {
	b := newBench(t, &v1alpha1.PhysicalNetwork{
		ObjectMeta: metav1.ObjectMeta{Name: "phy-net0"},
		Spec:       v1alpha1.PhysicalNetworkSpec{NodeInterfaces: []v1alpha1.NodeInterface{{Interface: v1alpha1.InterfaceSelector{Name: "eth1"}}}},
	})
	b.links.set(devices(t, "eth1 veth up"))
	b.write(t, "provider: eth1")
	b.step(b.ctx, true, b.pace)
	b.want(t, "InventoryReady False InvalidMap")

	if err := os.Remove(b.file); err != nil {
		t.Fatal(err)
	}
	b.clock.Step(publishEvery)
	b.step(b.ctx, true, b.pace)
	b.want(t, "phy-net0 [eth1] ready=true", "InventoryReady True InventoryRead")
}

func TestAKernelWithoutMacvlanIsToldAndAskedAgain(t *testing.T) {
	network := networks(t, "management macvlan phy-net0")[0]
	b := newBench(t, &network)
	b.write(t, goodMap)
	b.links.set(devices(t, "eth1 veth up"))
	b.links.lacks = link.KindMacvlan
	b.step(b.ctx, true, b.pace)
	b.want(t, "phy-net0 [eth1] ready=true", "refused management PluginUnavailable", "InventoryReady True InventoryRead")

	b.links.lacks = ""
	b.clock.Step(rereadEvery)
	b.step(b.ctx, true, b.pace)
	b.want(t, "phy-net0 [eth1] ready=true", "InventoryReady True InventoryRead")
}

func TestFailedWritesAreTriedAgainFurtherAndFurtherApart(t *testing.T) {
	b := newBench(t)
	b.write(t, goodMap)
	b.links.set(devices(t, "eth1 veth up"))
	b.fail = errors.New("connection refused")
	var pauses []time.Duration
	for range 6 {
		b.step(b.ctx, true, b.pace)
		pauses = append(pauses, b.pace.backoff)
		b.clock.Step(b.pace.backoff)
	}
	want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 15 * time.Second, 15 * time.Second}
	if diff := cmp.Diff(want, pauses); diff != "" {
		t.Errorf("pauses (-want +got):\n%s", diff)
	}
	if b.Current() == nil {
		t.Error("the agent itself must know its NICs while the API server is away")
	}
	b.fail = nil
	b.step(b.ctx, false, b.pace)
	b.want(t, "phy-net0 [eth1] ready=true", "InventoryReady True InventoryRead")
}

func TestALostNodeNetworkIsMadeAgain(t *testing.T) {
	b := newBench(t)
	b.write(t, goodMap)
	b.links.set(devices(t, "eth1 veth up"))
	b.step(b.ctx, true, b.pace)
	if err := b.client.Delete(b.ctx, b.shown(t)); err != nil {
		t.Fatal(err)
	}
	b.clock.Step(publishEvery)
	b.step(b.ctx, false, b.pace)
	b.want(t, "phy-net0 [eth1] ready=true", "InventoryReady True InventoryRead")
}

func TestTheNodeNetworkOfAnEarlierNodeIsLeftAlone(t *testing.T) {
	b := newBench(t, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{
		Name: nodeName, OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: nodeName, UID: "node-0"}},
	}})
	if err := b.refresh(b.ctx); err != nil {
		t.Fatal(err)
	}
	_, err := b.publishIfChanged(b.ctx)
	want := "NodeNetwork worker is of an earlier Node of that name (UID node-0) and is about to be collected"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestUnreadableLinksLeaveTheLastSnapshot(t *testing.T) {
	b := newBench(t)
	b.write(t, goodMap)
	b.links.set(devices(t, "eth1 veth up"))
	b.step(b.ctx, true, b.pace)
	b.links.err = errors.New("listing links: no buffer space available")
	b.step(b.ctx, true, b.pace)
	if got := b.Current().Parents("phy-net0"); len(got) != 1 {
		t.Errorf("parents %v, want [eth1]", got)
	}
}

func TestRunFollowsLinksAndMapFile(t *testing.T) {
	b := newBench(t)
	b.links.set(devices(t, "eth1 veth up"))
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	await := func(what string, ok func(*Snapshot) bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(b.Current()); time.Sleep(5 * time.Millisecond) {
			b.clock.Step(lookEvery / 10)
			if time.Now().After(deadline) {
				t.Fatalf("%s: not seen", what)
			}
		}
	}
	b.links.changes <- struct{}{}
	await("first listing", func(s *Snapshot) bool { return s != nil })
	b.write(t, goodMap)
	await("map file written", func(s *Snapshot) bool { return len(s.Parents("phy-net0")) == 1 })
	b.links.set(nil)
	b.links.changes <- struct{}{}
	await("NIC removed", func(s *Snapshot) bool { return len(s.Parents("phy-net0")) == 0 })
	if err := os.Rename(b.file, b.file+".away"); err != nil {
		t.Fatal(err)
	}
	await("map file moved away", func(s *Snapshot) bool { return len(s.PhysicalNetworks()) == 0 })
	cancel()
	close(b.links.changes)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// fakeBridges remembers for which devices it was called.
type fakeBridges struct {
	nics []string
	err  error
}

func (f *fakeBridges) EnsureParent(_ context.Context, spec link.ParentSpec) (link.Parent, error) {
	device := spec.NIC
	if spec.Tag != 0 {
		device = link.TaggedName(spec.NIC, spec.Tag)
	}
	f.nics = append(f.nics, device)
	return link.Parent{Name: link.BridgeName(device)}, f.err
}

func TestBridgesAreMendedWhenTheirNICChanges(t *testing.T) {
	b := newBench(t)
	bridges := &fakeBridges{err: errors.New("device or resource busy")}
	b.deps.Bridges = bridges
	b.write(t, goodMap)
	for _, step := range []struct {
		devices []string
		want    []string
	}{
		{[]string{"eth1 veth up", "np-eth1 bridge up"}, []string{"eth1"}},
		{[]string{"eth1 veth up", "np-eth1 bridge up"}, []string{"eth1", "eth1"}},
		{[]string{"eth1 veth up master=np-eth1:bridge", "np-eth1 bridge up"}, []string{"eth1", "eth1"}},
		{[]string{"eth1 veth up mtu=9000 master=np-eth1:bridge", "np-eth1 bridge up"}, []string{"eth1", "eth1", "eth1"}},
		{[]string{"eth1 veth up mtu=9000 master=br0:bridge", "br0 bridge up"}, []string{"eth1", "eth1", "eth1"}},
		{[]string{"np-eth1 bridge up"}, []string{"eth1", "eth1", "eth1"}},
		{[]string{"eth2 veth up", "np-eth2 bridge up"}, []string{"eth1", "eth1", "eth1"}},
	} {
		b.links.set(devices(t, step.devices...))
		if err := b.refresh(b.ctx); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(step.want, bridges.nics); diff != "" {
			t.Errorf("%v: NICs put into bridges (-want +got):\n%s", step.devices, diff)
		}
	}
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	_, err := New(Config{}, Deps{})
	want := "the node's name is missing\nthe map file's path is missing\nlinks, held, client and clock are all needed"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}
