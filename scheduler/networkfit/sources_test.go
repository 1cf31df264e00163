// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"errors"
	"net/netip"
	"testing"
	"time"
	"unique"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic/dynamicinformer"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"

	"github.com/netplane/netplane/api/v1alpha1"
)

// The informer whose events wake pods must hand out what the plugin reads, and
// have it in its store, indexes included, before it tells anyone.
func TestOneInformerServesEventsAndData(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), v1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	claimed := makeBlock("data", "n", 0)
	client := dynamicfake.NewSimpleDynamicClient(scheme, makeNetwork("data").Network, makeNodeNetwork("n", up("data")), makeNamespace("tenant", nil))
	dynamic := dynamicinformer.NewDynamicSharedInformerFactory(client, 0)
	typed := informers.NewSharedInformerFactory(fake.NewClientset(makePod("p", "data"), makePod("none", "")), 0)
	sources, err := NewSources(dynamic, typed.Core().V1().Pods().Informer())
	if err != nil {
		t.Fatal(err)
	}
	held := make(chan int, 1)
	if _, err := dynamic.ForResource(ipBlocks()).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(obj any) {
		if added, ok := obj.(*block); !ok || added.name != claimed.Name {
			t.Errorf("the handler got a %T", obj)
		}
		held <- supplyOf(makeNetwork("data"), "uid-n", sources.blocksOf("n")).Addresses
	}}); err != nil {
		t.Fatal(err)
	}
	dynamic.Start(t.Context().Done())
	typed.Start(t.Context().Done())
	dynamic.WaitForCacheSync(t.Context().Done())
	typed.WaitForCacheSync(t.Context().Done())

	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(claimed)
	if err != nil {
		t.Fatal(err)
	}
	raw["apiVersion"], raw["kind"] = v1alpha1.SchemeGroupVersion.String(), "IPBlock"
	if _, err := client.Resource(ipBlocks()).Create(t.Context(), &unstructured.Unstructured{Object: raw}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-held:
		if got != 7 {
			t.Errorf("when the block's event arrived the node held %d addresses", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the block's event did not arrive")
	}
	if _, ok := lookup[*network](sources.networks, "data"); !ok {
		t.Error("the Network is not in the cache")
	}
	if _, ok := lookup[*node](sources.nodes, "n"); !ok {
		t.Error("the NodeNetwork is not in the cache")
	}
	if _, ok := lookup[*v1.Namespace](sources.namespaces, "tenant"); !ok {
		t.Error("the Namespace is not in the cache")
	}
	if !sources.podExists("uid-p") || sources.podExists("uid-q") || sources.podExists("uid-none") {
		t.Error("pods with networks are not found by UID, or others are")
	}
}

func TestTransformsAreIdempotent(t *testing.T) {
	for name, test := range map[string]struct {
		transform cache.TransformFunc
		object    any
	}{
		"NodeNetwork": {toNode, makeNode("n", nil)},
		"Network":     {toNetwork, makeNetwork("data")},
		"IPBlock":     {toIPBlock, newBlock(makeBlock("data", "n", 0))},
		"IPClaim":     {toIPClaim, &v1alpha1.IPClaim{}},
		"Namespace":   {toNamespace, makeNamespace("tenant", nil)},
		"tombstone":   {toNode, cache.DeletedFinalStateUnknown{Key: "n"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.transform(test.object)
			if err != nil || got != test.object {
				t.Errorf("the transform made %T (%v) of what it had made", got, err)
			}
		})
	}
}

func TestDemandsAreForgottenInTime(t *testing.T) {
	d := newDemands()
	for i := range maxDemands + 10 {
		d.of(makePod("p", "n"+string(rune('a'+i%26))+time.Duration(i).String()))
	}
	count := 0
	d.byText.Range(func(any, any) bool { count++; return true })
	if count > maxDemands {
		t.Errorf("%d texts are remembered, at most %d may be", count, maxDemands)
	}
}

// A cluster has thousands of these objects: what is not read is not kept.
func TestTransformsKeepWhatIsRead(t *testing.T) {
	stamp := metav1.ObjectMeta{
		Name: "x", UID: "u", ResourceVersion: "7", Generation: 2, Labels: map[string]string{"team": "a"}, Annotations: map[string]string{"a": "b"},
		Finalizers: []string{v1alpha1.FinalizerIPBlock}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}},
	}
	labelled := metav1.ObjectMeta{Name: "x", UID: "u", ResourceVersion: "7", Labels: stamp.Labels}
	claimed := makeBlock("data", "n", 1)
	claimed.ObjectMeta = stamp
	claimed.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	slimBlock := &block{
		name: "x", uid: "u", version: "7", network: unique.Make(named{"data", "uid-data"}), node: unique.Make(named{"n", "uid-n"}),
		cidr: netip.MustParsePrefix("10.0.1.8/29"), leaving: true,
	}
	held := v1alpha1.HeldAddresses{Network: "data", Count: 2, PodUID: "p", Fixed: true}
	full := makeNodeNetwork("x", append(up("data"), notReady("backup", v1alpha1.ReasonInterfaceNotFound)...), refuse("data", "r"), hold(held))
	full.ObjectMeta = stamp
	full.Status.PhysicalNetworks[0].Exclusive, full.Status.PhysicalNetworks[1].Exclusive = []string{"eth1"}, []string{"eth1"}
	full.Status.Refused[0].Message = "a long text"
	full.Status.Interfaces, full.Status.Mapped = []v1alpha1.NodeInterfaceStatus{{Name: "eth1", State: v1alpha1.OperStateUp}}, "phy-data=eth1"
	slimNode := &node{
		name: "x", version: "7", agentReady: true,
		backings: []backing{{physical: "phy-data", nics: 1, found: true, ready: true}, {physical: "phy-backup", nics: 1}},
		refused:  []v1alpha1.RefusedNetwork{{Network: "data", Reason: "r"}}, held: []v1alpha1.HeldAddresses{held},
	}
	for name, test := range map[string]struct {
		transform    cache.TransformFunc
		object, want any
	}{
		"NodeNetwork": {toNode, full, slimNode},
		"IPBlock":     {toIPBlock, claimed, slimBlock},
		"Namespace":   {toNamespace, &v1.Namespace{ObjectMeta: stamp, Spec: v1.NamespaceSpec{Finalizers: []v1.FinalizerName{"f"}}}, &v1.Namespace{ObjectMeta: labelled}},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(test.object)
			if err != nil {
				t.Fatal(err)
			}
			got, err := test.transform(&unstructured.Unstructured{Object: raw})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(node{}, backing{}, block{}), cmpopts.EquateComparable(netip.Prefix{}, unique.Handle[named]{})); diff != "" {
				t.Errorf("kept (-want +got):\n%s", diff)
			}
		})
	}
}
