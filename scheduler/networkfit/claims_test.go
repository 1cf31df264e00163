// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// fakeAPI holds the blocks of an API server.
type fakeAPI struct {
	mu      sync.Mutex
	blocks  map[string]*v1alpha1.IPBlock
	creates int
	// before may fail a request; with lost, after it was carried out.
	before func(create int) (lost bool, err error)
}

func (f *fakeAPI) Create(_ context.Context, block *v1alpha1.IPBlock) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.creates++
	var err error
	lost := false
	if f.before != nil {
		lost, err = f.before(f.creates)
	}
	if err != nil && !lost {
		return err
	}
	if f.blocks[block.Name] != nil {
		return apierrors.NewAlreadyExists(ipBlocks().GroupResource(), block.Name)
	}
	f.blocks[block.Name] = block.DeepCopy()
	return err
}

func (f *fakeAPI) Get(_ context.Context, name string) (*v1alpha1.IPBlock, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if block := f.blocks[name]; block != nil {
		return block.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(ipBlocks().GroupResource(), name)
}

// snapshot is the part of a framework's Handle that the plugin uses: the nodes
// with the pods that are thought to be on them.
type snapshot struct {
	fwk.Handle
	fwk.SharedLister
	fwk.NodeInfoLister
	infos map[string]*nodeInfo
}

func (s *snapshot) SnapshotSharedLister() fwk.SharedLister { return s }
func (s *snapshot) NodeInfos() fwk.NodeInfoLister          { return s }

func (s *snapshot) Get(name string) (fwk.NodeInfo, error) {
	if info, ok := s.infos[name]; ok {
		return info, nil
	}
	return nil, fmt.Errorf("no node %q", name)
}

// tight is a cluster whose nodes a, b, c, ... share a Network that is Tight.
type tight struct {
	*NetworkFit
	t          *testing.T
	api        *fakeAPI
	nodes      *snapshot
	clock      *testingclock.FakePassiveClock
	generation int64
}

// aTightNetwork has 16 blocks, of which the first and the last serve 6 pods
// and the others 7.
func aTightNetwork(n *v1alpha1.Network) {
	n.Spec.Subnet = "10.0.1.0/25"
	meta.SetStatusCondition(&n.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionTight, Status: metav1.ConditionTrue})
}

func newTight(t *testing.T, nodes int) *tight {
	t.Helper()
	w := &tight{
		t: t, api: &fakeAPI{blocks: map[string]*v1alpha1.IPBlock{}}, nodes: &snapshot{infos: map[string]*nodeInfo{}},
		clock: testingclock.NewFakePassiveClock(time.Unix(1e9, 0)), generation: 1,
	}
	objects := []any{makeNetwork("data", aTightNetwork)}
	for i := range nodes {
		name := string(rune('a' + i))
		objects = append(objects, makeNode(name, up("data")))
		w.nodes.infos[name] = newNodeInfo(name)
	}
	w.NetworkFit = newPlugin(t, objects...)
	w.handle, w.blocks = w.nodes, w.api
	w.sources.claims.clock = w.clock
	return w
}

// place takes a pod through a scheduling cycle, and says what stands against
// the node. With success the pod is thought to be on it.
func (w *tight) place(pod *v1.Pod, node string) (fwk.CycleState, *fwk.Status) {
	state := newCycleState()
	if _, status := w.PreFilter(w.t.Context(), state, pod, nil); !status.IsSuccess() {
		return state, status
	}
	if status := w.Filter(w.t.Context(), state, pod, w.nodes.infos[node]); !status.IsSuccess() {
		return state, status
	}
	if status := w.Reserve(w.t.Context(), state, pod, node); !status.IsSuccess() {
		w.Unreserve(w.t.Context(), state, pod, node)
		return state, status
	}
	w.assume(node, pod)
	return state, nil
}

func (w *tight) assume(node string, pod *v1.Pod) {
	w.generation++
	w.nodes.infos[node].set(w.generation, append(slices.Clone(w.nodes.infos[node].pods), pod)...)
}

func (w *tight) forget(state fwk.CycleState, node string, pod *v1.Pod) {
	w.Unreserve(w.t.Context(), state, pod, node)
	w.generation++
	left := slices.DeleteFunc(slices.Clone(w.nodes.infos[node].pods), func(p *v1.Pod) bool { return p.UID == pod.UID })
	w.nodes.infos[node].set(w.generation, left...)
}

// bind runs a pod's binding cycle up to the binding.
func (w *tight) bind(state fwk.CycleState, pod *v1.Pod, node string) *fwk.Status {
	if _, status := w.PreBindPreFlight(w.t.Context(), state, pod, node); status.IsSkip() {
		return nil
	}
	return w.PreBind(w.t.Context(), state, pod, node)
}

// show lets the informer see a block, or all of them.
func (w *tight) show(names ...string) {
	w.t.Helper()
	for name, block := range w.api.blocks {
		if len(names) == 0 || slices.Contains(names, name) {
			if err := w.sources.blocks.Add(block); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// claimedBy gives another a block.
func (w *tight) claimedBy(node string, prefix netip.Prefix) *v1alpha1.IPBlock {
	name := addressing.BlockName("data", prefix)
	block := &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)},
		Spec:       v1alpha1.IPBlockSpec{Network: "data", NetworkUID: "uid-data", CIDR: v1alpha1.CIDR(prefix.String()), NodeName: node, NodeUID: types.UID("uid-" + node)},
	}
	if w.api.blocks[name] == nil {
		w.api.blocks[name] = block
	}
	return block
}

// serves is what the API server's blocks serve on a node.
func (w *tight) serves(node string) int {
	net, _ := lookup[*network](w.sources.networks, "data")
	sum := 0
	for _, block := range w.api.blocks {
		if block.Spec.NodeName == node {
			sum += net.plan.Capacity(netip.MustParsePrefix(string(block.Spec.CIDR)))
		}
	}
	return sum
}

// inFlight lists the blocks that are reserved or created, as "node cidr".
func (w *tight) inFlight() []string {
	var out []string
	if p := w.sources.claims.pools["uid-data"]; p != nil {
		for prefix, on := range p.byBlock {
			if on.prefix != prefix || !slices.Contains(p.byNode[on.node.Name], on) {
				w.t.Errorf("%s and what is known of node %s disagree", prefix, on.node.Name)
			}
			out = append(out, on.node.Name+" "+prefix.String())
		}
	}
	slices.Sort(out)
	return out
}

func (w *tight) now() metav1.Time { return metav1.NewTime(w.clock.Now()) }

func (w *tight) mustPlace(pod *v1.Pod, node string) fwk.CycleState {
	w.t.Helper()
	state, status := w.place(pod, node)
	if !status.IsSuccess() {
		w.t.Fatalf("pod %s on node %s: %v", pod.Name, node, answerOf(status))
	}
	return state
}

// hide has a block go, in the API and in the informer.
func (w *tight) hide(name string) {
	w.t.Helper()
	if err := w.sources.blocks.Delete(w.api.blocks[name]); err != nil {
		w.t.Fatal(err)
	}
	delete(w.api.blocks, name)
}

// Nobody asks between the moment when a block is shown and that when it is
// given back, and all of it is over within the time for which it counts without
// being shown.
func TestABlockThatCameAndWentIsNotOnItsWay(t *testing.T) {
	w := newTight(t, 1)
	first := makePod("first", "data")
	state := w.mustPlace(first, "a")
	if status := w.bind(state, first, "a"); !status.IsSuccess() {
		t.Fatal(answerOf(status))
	}
	w.PostBind(t.Context(), state, first, "a")
	w.show()
	w.nodes.infos["a"].set(100) // the pod has ended
	for _, name := range slices.Collect(maps.Keys(w.api.blocks)) {
		w.hide(name)
	}
	second := makePod("second", "data")
	if status := w.bind(w.mustPlace(second, "a"), second, "a"); !status.IsSuccess() {
		t.Fatal(answerOf(status))
	}
	if w.serves("a") == 0 {
		t.Error("the second pod is bound to a node without a block")
	}
}

// In any order of events no block is promised to two nodes, no pod is bound
// beyond what its node's blocks serve, and nothing stays reserved in the end.
func TestNoBlockIsPromisedTwice(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { wander(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

type going struct {
	pod   *v1.Pod
	node  string
	state fwk.CycleState
}

func wander(t *testing.T, random *rand.Rand) {
	w := newTight(t, 6)
	w.api.before = func(int) (bool, error) {
		switch random.IntN(6) {
		case 0:
			return false, errors.New("connection refused")
		case 1:
			return true, context.DeadlineExceeded
		}
		return false, nil
	}
	net, _ := lookup[*network](w.sources.networks, "data")
	all := slices.Collect(net.plan.Candidates("elsewhere"))
	var open []going
	bound := map[string]int{}
	for step := range 400 {
		var at going
		if len(open) > 0 {
			i := random.IntN(len(open))
			at = open[i]
			if random.IntN(5) < 2 {
				open = slices.Delete(open, i, i+1)
				if status := w.bind(at.state, at.pod, at.node); random.IntN(3) == 0 || !status.IsSuccess() {
					w.forget(at.state, at.node, at.pod)
				} else {
					w.PostBind(t.Context(), at.state, at.pod, at.node)
					bound[at.node] += readWants(at.state)[0].demand
					if serves := w.serves(at.node); bound[at.node] > serves {
						t.Fatalf("step %d: node %s has pods with %d addresses, but blocks for %d", step, at.node, bound[at.node], serves)
					}
				}
			}
		}
		switch random.IntN(8) {
		case 0:
			if names := slices.Sorted(maps.Keys(w.api.blocks)); len(names) > 0 {
				w.show(names[random.IntN(len(names))])
			}
		case 1:
			if random.IntN(16) == 0 {
				w.claimedBy("elsewhere", all[random.IntN(len(all))])
			}
		case 2:
			w.clock.SetTime(w.clock.Now().Add(takenFor))
		default:
			pod := makePod(fmt.Sprint("p", step), []string{"data", "data,data,data", "data,data,data,data,data,data,data,data,data"}[random.IntN(3)])
			node := string(rune('a' + random.IntN(6)))
			if state, status := w.place(pod, node); status.IsSuccess() {
				open = append(open, going{pod, node, state})
			}
		}
		w.inFlight()
	}
	for _, at := range open {
		w.forget(at.state, at.node, at.pod)
	}
	w.show()
	w.clock.SetTime(w.clock.Now().Add(2 * assumeFor))
	w.sources.claims.promised("uid-data", w.sources.shown)
	if left := w.inFlight(); len(left) > 0 {
		t.Errorf("blocks stay reserved: %v", left)
	}
}

func TestReserveIsTakenBackExactly(t *testing.T) {
	w := newTight(t, 2)
	kept := w.mustPlace(makePod("kept", "data"), "a")
	before := w.inFlight()
	for range 3 { // a pod group's placements
		var tried []going
		for i := range 20 {
			pod, node := makePod(fmt.Sprint("member", i), "data,data"), []string{"a", "b"}[i%2]
			tried = append(tried, going{pod, node, w.mustPlace(pod, node)})
		}
		for _, at := range slices.Backward(tried) {
			w.forget(at.state, at.node, at.pod)
		}
		if after := w.inFlight(); !slices.Equal(before, after) {
			t.Fatalf("reserved are %v, before it were %v", after, before)
		}
	}
	w.forget(kept, "a", makePod("kept", "data"))
	if n := len(w.sources.claims.pools); n != 0 {
		t.Errorf("%d networks are remembered, though nothing is reserved", n)
	}
}

// The members of a pod group are placed for good one after the other, with the
// snapshot of before.
func TestPodsThatTheSnapshotLacksAreCounted(t *testing.T) {
	w := newTight(t, 1)
	w.show(w.claimedBy("a", netip.MustParsePrefix("10.0.1.8/29")).Name)
	place := func(name string) {
		pod, state := makePod(name, "data"), newCycleState()
		if err := w.sources.pods.Add(pod); err != nil {
			t.Fatal(err)
		}
		w.PreFilter(t.Context(), state, pod, nil)
		if status := w.Reserve(t.Context(), state, pod, "a"); !status.IsSuccess() {
			t.Fatalf("pod %s: %v", name, answerOf(status))
		}
		w.PostBind(t.Context(), state, pod, "a")
	}
	for i := range 7 {
		place(fmt.Sprint("p", i))
	}
	if got := w.inFlight(); len(got) != 0 {
		t.Fatalf("for 7 pods of a block for 7 there are reserved: %v", got)
	}
	if err := w.sources.pods.Delete(makePod("p3", "data")); err != nil {
		t.Fatal(err)
	}
	place("in the place of one that is gone")
	if got := w.inFlight(); len(got) != 0 {
		t.Fatalf("for 7 pods, after one has ended, there are reserved: %v", got)
	}
	place("eighth")
	if got := w.inFlight(); len(got) != 1 {
		t.Errorf("for the eighth pod of a block for 7 there are reserved: %v", got)
	}
}

func TestPodsShareABlockThatIsOnItsWay(t *testing.T) {
	w := newTight(t, 1)
	var all []going
	for i := range 7 {
		pod := makePod(fmt.Sprint("p", i), "data")
		all = append(all, going{pod, "a", w.mustPlace(pod, "a")})
	}
	if got := w.inFlight(); len(got) > 2 { // one, unless it is the first or last of the subnet
		t.Fatalf("for 7 pods are reserved: %v", got)
	}
	reserved := len(w.inFlight())
	w.forget(all[0].state, "a", all[0].pod) // the first, for whom it was reserved
	var group sync.WaitGroup
	for _, at := range all[1:] {
		group.Go(func() {
			if status := w.bind(at.state, at.pod, "a"); !status.IsSuccess() {
				t.Errorf("pod %s: %v", at.pod.Name, answerOf(status))
			}
		})
	}
	group.Wait()
	if w.api.creates != reserved {
		t.Errorf("%d requests for %d blocks", w.api.creates, reserved)
	}
	if serves := w.serves("a"); serves < 6 {
		t.Errorf("the node's blocks serve %d pods, want 6", serves)
	}
}
