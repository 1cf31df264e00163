// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	thisNode              = "worker"
	thisNodeUID types.UID = "uid-worker"
)

// claimFixture is a Claimer over an API server in memory.
type claimFixture struct {
	*fixture
	claimer *Claimer
	deps    ClaimerDeps
	api     client.WithWatch
	metrics *prometheus.Registry
	calls   []string                // writes and uncached reads
	events  []string                // as "type reason note"
	onWrite func(call string) error // called before each write
	lost    func(call string) bool  // the write is done, the reply is lost
}

func newClaimFixture(t *testing.T, objects ...client.Object) *claimFixture {
	t.Helper()
	f := &claimFixture{fixture: newFixture(t), metrics: prometheus.NewRegistry()}
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	f.api = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.Network{}, &v1alpha1.NodeNetwork{}).Build()
	writes := interceptor.NewClient(f.api, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			return f.write("create "+obj.GetName(), func() error {
				obj.SetUID(types.UID("uid-" + obj.GetName()))
				return c.Create(ctx, obj, opts...)
			})
		},
		Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
			return f.write("delete "+obj.GetName(), func() error { return c.Delete(ctx, obj, opts...) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
			return f.write("patch "+obj.GetName(), func() error { return c.Patch(ctx, obj, patch, opts...) })
		},
	})
	metrics, err := NewMetrics(f.metrics, f.Manager)
	if err != nil {
		t.Fatal(err)
	}
	f.deps = ClaimerDeps{Client: writes, Live: liveReader{f}, Manager: f.Manager, Metrics: metrics, Events: f, Clock: f.clock}
	f.claimer = NewClaimer(ClaimerConfig{NodeName: thisNode}, f.deps)
	return f
}

// restart ends Manager and Claimer as a SIGKILL does, and starts others.
func (f *claimFixture) restart() {
	f.t.Helper()
	f.crash(func(Lease) bool { return true })
	f.deps.Manager = f.Manager
	f.claimer = NewClaimer(ClaimerConfig{NodeName: thisNode}, f.deps)
}

// Eventf implements EventRecorder.
func (f *claimFixture) Eventf(_, _ runtime.Object, eventtype, reason, _, note string, args ...any) {
	f.events = append(f.events, eventtype+" "+reason+" "+fmt.Sprintf(note, args...))
}

func (f *claimFixture) write(call string, do func() error) error {
	f.calls = append(f.calls, call)
	if f.onWrite != nil {
		if err := f.onWrite(call); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if f.lost != nil && f.lost(call) {
		return context.DeadlineExceeded
	}
	return nil
}

// liveReader notes what is read from the API server itself. The fake client
// cannot select metadata by a field of the spec, so that is done here.
type liveReader struct{ f *claimFixture }

func (r liveReader) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	r.f.calls = append(r.f.calls, "get "+key.Name)
	return r.f.api.Get(ctx, key, obj, opts...)
}

func (r liveReader) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	r.f.calls = append(r.f.calls, "list")
	names, ok := list.(*metav1.PartialObjectMetadataList)
	if !ok {
		return fmt.Errorf("list of %T", list)
	}
	var options client.ListOptions
	options.ApplyOptions(opts)
	var blocks v1alpha1.IPBlockList
	if err := r.f.api.List(ctx, &blocks); err != nil {
		return err
	}
	names.Items = nil
	for i := range blocks.Items {
		if b := &blocks.Items[i]; options.FieldSelector.Matches(fields.Set{v1alpha1.FieldIPBlockNetwork: b.Spec.Network, v1alpha1.FieldIPBlockNodeName: b.Spec.NodeName}) {
			names.Items = append(names.Items, metav1.PartialObjectMetadata{ObjectMeta: b.ObjectMeta})
		}
	}
	return nil
}

// run reconciles the network "data" once and returns the calls that it made.
func (f *claimFixture) run() ([]string, reconcile.Result) {
	f.t.Helper()
	calls, result, err := f.tryRun()
	if err != nil {
		f.t.Fatal(err)
	}
	return calls, result
}

func (f *claimFixture) tryRun() ([]string, reconcile.Result, error) {
	f.calls = nil
	result, err := f.claimer.Reconcile(f.t.Context(), requestFor("data"))
	return f.calls, result, err
}

func (f *claimFixture) blocksInAPI() []string {
	f.t.Helper()
	var list v1alpha1.IPBlockList
	if err := f.api.List(f.t.Context(), &list); err != nil {
		f.t.Fatal(err)
	}
	var out []string
	for i := range list.Items {
		b := &list.Items[i]
		text := fmt.Sprintf("%s of %s", b.Spec.CIDR, b.Spec.NodeName)
		if b.DeletionTimestamp != nil {
			text += " deleting"
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

// forceGone takes a block away as an admin can by force, finalizer or not.
func (f *claimFixture) forceGone(prefix string) {
	f.t.Helper()
	ctx := f.t.Context()
	var block v1alpha1.IPBlock
	if err := f.api.Get(ctx, client.ObjectKey{Name: addressing.BlockName("data", netip.MustParsePrefix(prefix))}, &block); err != nil {
		f.t.Fatal(err)
	}
	block.Finalizers = nil
	if err := errors.Join(f.api.Update(ctx, &block), f.api.Delete(ctx, &block)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *claimFixture) create(objects ...client.Object) {
	f.t.Helper()
	for _, obj := range objects {
		if err := f.api.Create(f.t.Context(), obj); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *claimFixture) deleteInAPI(obj client.Object) {
	f.t.Helper()
	if err := f.api.Delete(f.t.Context(), obj); err != nil {
		f.t.Fatal(err)
	}
}

// dataNetwork is Ready, with 8 blocks of 8 addresses.
func dataNetwork() *v1alpha1.Network {
	return &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: "data", UID: dataUID, Generation: 1, Finalizers: []string{v1alpha1.FinalizerNetwork}},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "phy-net1", Plugin: v1alpha1.PluginBridge, Subnet: "10.20.0.0/26", BlockSize: 8},
		Status: v1alpha1.NetworkStatus{
			ObservedGeneration: 1,
			Conditions:         []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}},
		},
	}
}

func thisNodeNetwork() *v1alpha1.NodeNetwork {
	return &v1alpha1.NodeNetwork{
		ObjectMeta: metav1.ObjectMeta{Name: thisNode},
		Status: v1alpha1.NodeNetworkStatus{PhysicalNetworks: []v1alpha1.NodePhysicalNetwork{
			{Name: "phy-net0", Interfaces: []string{"eth1"}, Ready: false},
			{Name: "phy-net1", Interfaces: []string{"eth2"}, Ready: true},
		}},
	}
}

func thisNodeObject() *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: thisNode, UID: thisNodeUID}}
}

// world is a node that may claim, and the Network "data".
func world(extra ...client.Object) []client.Object {
	return append([]client.Object{dataNetwork(), thisNodeNetwork(), thisNodeObject()}, extra...)
}

func pod(name string, networks string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name), Annotations: map[string]string{v1alpha1.AnnotationNetworks: networks}},
		Spec:       corev1.PodSpec{NodeName: thisNode},
	}
}

func ipBlock(prefix, node string, nodeUID types.UID) *v1alpha1.IPBlock {
	name := addressing.BlockName("data", netip.MustParsePrefix(prefix))
	return &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Finalizers: []string{v1alpha1.FinalizerIPBlock}},
		Spec:       v1alpha1.IPBlockSpec{Network: "data", NetworkUID: dataUID, CIDR: v1alpha1.CIDR(prefix), NodeName: node, NodeUID: nodeUID},
	}
}

// candidates are the blocks of "data" in the order in which this node tries them.
func (f *claimFixture) candidates() []string {
	var out []string
	for prefix := range f.plans["data"].Candidates(thisNode) {
		out = append(out, prefix.String())
	}
	return out
}

func named(verb, prefix string) string {
	return verb + " " + addressing.BlockName("data", netip.MustParsePrefix(prefix))
}
