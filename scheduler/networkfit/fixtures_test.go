// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"fmt"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/v1alpha1"
)

// newPlugin makes a plugin whose caches hold the objects.
func newPlugin(t testing.TB, objects ...any) *NetworkFit {
	t.Helper()
	s := newTestSources()
	for _, object := range objects {
		var err error
		switch o := object.(type) {
		case *node:
			err = s.nodes.Add(o)
		case *network:
			err = s.networks.Add(o)
		case *v1alpha1.IPBlock:
			err = s.blocks.Add(o)
		case *v1alpha1.IPClaim:
			err = s.fixed.Add(o)
		case *v1.Namespace:
			err = s.namespaces.Add(o)
		case *v1.Pod:
			err = s.pods.Add(o)
		default:
			t.Fatalf("no cache for a %T", object)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	pl, err := New(nil, s)
	if err != nil {
		t.Fatal(err)
	}
	return pl
}

// newTestSources makes empty caches with the indexes of the informers'.
func newTestSources() *Sources {
	s := &Sources{demands: newDemands(), views: &views{}}
	s.nodes = cache.NewIndexer(cache.MetaNamespaceKeyFunc, s.nodeIndexers())
	s.networks = cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{indexNICs: nicsOf})
	s.blocks = blockStore{cache.NewIndexer(cache.MetaNamespaceKeyFunc, s.blockIndexers())}
	s.fixed = cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{indexFixedByOwner: claimOwner})
	s.namespaces = cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	s.pods = cache.NewIndexer(cache.MetaNamespaceKeyFunc, s.podIndexers())
	return s
}

// blockStore takes IPBlocks and stores them as the informer does.
type blockStore struct{ cache.Indexer }

func (b blockStore) Add(obj any) error    { return b.Indexer.Add(stored(obj)) }
func (b blockStore) Update(obj any) error { return b.Indexer.Update(stored(obj)) }
func (b blockStore) Delete(obj any) error { return b.Indexer.Delete(stored(obj)) }

func (b blockStore) Replace(list []any, version string) error {
	all := make([]any, 0, len(list))
	for _, obj := range list {
		all = append(all, stored(obj))
	}
	return b.Indexer.Replace(all, version)
}

// stored is what an informer makes of an IPBlock before it stores it and tells
// of it; anything else is left as it is.
func stored(obj any) any {
	switch o := obj.(type) {
	case *v1alpha1.IPBlock:
		return newBlock(o)
	case cache.DeletedFinalStateUnknown:
		return cache.DeletedFinalStateUnknown{Key: o.Key, Obj: stored(o.Obj)}
	}
	return obj
}

// makeNetwork is a ready Network of blocks with 7 addresses for pods each.
func makeNetwork(name string, change ...func(*v1alpha1.Network)) *network {
	object := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Generation: 1},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "phy-" + name, Plugin: v1alpha1.PluginMacvlan, Subnet: "10.0.0.0/16", BlockSize: 8},
	}
	setReady(metav1.ConditionTrue, v1alpha1.ReasonReady, "")(object)
	for _, c := range change {
		c(object)
	}
	return newNetwork(object)
}

func setReady(status metav1.ConditionStatus, reason, message string) func(*v1alpha1.Network) {
	return func(n *v1alpha1.Network) {
		meta.SetStatusCondition(&n.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady, Status: status, Reason: reason, Message: message})
	}
}

func deletingNetwork(n *v1alpha1.Network) {
	now := metav1.NewTime(time.Unix(1, 0))
	n.DeletionTimestamp = &now
}

// makeNode is a node with a ready agent whose NICs back the physical networks.
func makeNode(name string, physical []v1alpha1.NodePhysicalNetwork, change ...func(*v1alpha1.NodeNetwork)) *node {
	return newNode(makeNodeNetwork(name, physical, change...))
}

func makeNodeNetwork(name string, physical []v1alpha1.NodePhysicalNetwork, change ...func(*v1alpha1.NodeNetwork)) *v1alpha1.NodeNetwork {
	object := &v1alpha1.NodeNetwork{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status:     v1alpha1.NodeNetworkStatus{PhysicalNetworks: physical},
	}
	setAgent(metav1.ConditionTrue)(object)
	for _, c := range change {
		c(object)
	}
	return object
}

func setAgent(status metav1.ConditionStatus) func(*v1alpha1.NodeNetwork) {
	return func(n *v1alpha1.NodeNetwork) {
		meta.SetStatusCondition(&n.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionAgentReady, Status: status})
	}
}

func hold(held ...v1alpha1.HeldAddresses) func(*v1alpha1.NodeNetwork) {
	return func(n *v1alpha1.NodeNetwork) { n.Status.Held = append(n.Status.Held, held...) }
}

func refuse(network, reason string) func(*v1alpha1.NodeNetwork) {
	return func(n *v1alpha1.NodeNetwork) {
		n.Status.Refused = append(n.Status.Refused, v1alpha1.RefusedNetwork{Network: network, Reason: reason})
	}
}

func up(names ...string) []v1alpha1.NodePhysicalNetwork {
	var out []v1alpha1.NodePhysicalNetwork
	for _, name := range names {
		out = append(out, v1alpha1.NodePhysicalNetwork{Name: "phy-" + name, Interfaces: []string{"eth1"}, Ready: true, Reason: v1alpha1.ReasonInterfaceUp})
	}
	return out
}

func notReady(name, reason string) []v1alpha1.NodePhysicalNetwork {
	return []v1alpha1.NodePhysicalNetwork{{Name: "phy-" + name, Interfaces: []string{"eth1"}, Reason: reason}}
}

// makeBlock is the index-th block that node holds of a network.
func makeBlock(network, node string, index int) *v1alpha1.IPBlock {
	cidr := fmt.Sprintf("10.0.1.%d/29", 8*index)
	return &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s.10.0.1.%d-29", network, 8*index), UID: types.UID(fmt.Sprintf("uid-%s-%s-%d", network, node, index))},
		Spec:       v1alpha1.IPBlockSpec{Network: network, NetworkUID: types.UID("uid-" + network), CIDR: v1alpha1.CIDR(cidr), NodeName: node, NodeUID: types.UID("uid-" + node)},
	}
}

// makePod asks for networks; an empty text means that it has no annotation.
func makePod(name, networks string) *v1.Pod {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "tenant", UID: types.UID("uid-" + name)}}
	if networks != "" {
		pod.Annotations = map[string]string{v1alpha1.AnnotationNetworks: networks}
	}
	return pod
}

func makeNamespace(name string, labels map[string]string) *v1.Namespace {
	return &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

// cycleState is a map; the plugin uses nothing else of the framework's.
type cycleState struct {
	fwk.CycleState
	data  map[fwk.StateKey]fwk.StateData
	group bool // of a pod that is tried together with its group
}

func newCycleState() *cycleState { return &cycleState{data: map[fwk.StateKey]fwk.StateData{}} }

func (c *cycleState) Read(key fwk.StateKey) (fwk.StateData, error) {
	if data, ok := c.data[key]; ok {
		return data, nil
	}
	return nil, fwk.ErrNotFound
}

func (c *cycleState) IsPodGroupSchedulingCycle() bool { return c.group }

func (c *cycleState) Write(key fwk.StateKey, data fwk.StateData) { c.data[key] = data }

// nodeInfo is a node and its pods; as in the framework each change gives it
// another generation.
type nodeInfo struct {
	fwk.NodeInfo
	node       *v1.Node
	pods       []*v1.Pod
	generation int64
}

type podInfo struct {
	fwk.PodInfo
	pod *v1.Pod
}

func (p podInfo) GetPod() *v1.Pod { return p.pod }

func newNodeInfo(name string, pods ...*v1.Pod) *nodeInfo {
	return &nodeInfo{node: &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)}}, pods: pods, generation: 1}
}

func (n *nodeInfo) Node() *v1.Node       { return n.node }
func (n *nodeInfo) GetGeneration() int64 { return n.generation }

func (n *nodeInfo) GetPods() []fwk.PodInfo {
	out := make([]fwk.PodInfo, 0, len(n.pods))
	for _, pod := range n.pods {
		out = append(out, podInfo{pod: pod})
	}
	return out
}

func (n *nodeInfo) set(generation int64, pods ...*v1.Pod) {
	n.generation, n.pods = generation, slices.Clone(pods)
}

// answer is a Status as the tests compare it.
type answer struct {
	Code    string
	Message string
}

func answerOf(status *fwk.Status) answer {
	return answer{Code: status.Code().String(), Message: status.Message()}
}

// Answers in short.
func success() answer                     { return answer{Code: "Success"} }
func skip() answer                        { return answer{Code: "Skip"} }
func unschedulable(message string) answer { return answer{"Unschedulable", message} }
func unresolvable(message string) answer  { return answer{"UnschedulableAndUnresolvable", message} }
