// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/metrics/legacyregistry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestABurstOfTwiceTheCapacity(t *testing.T) {
	w := newWorld(t)
	burst := w.network("burst", "phy-net1", "10.40.0.0/16")
	nodes := []string{"burst-a", "burst-b", "burst-c"}
	for i, node := range nodes {
		w.node(node, "phy-net1")
		for j := range 3 {
			w.block(burst, node, fmt.Sprintf("10.40.%d.%d/29", i+1, 8*j))
		}
	}
	const each = 3 * 7
	addresses := each * len(nodes)
	for i := range 2 * addresses {
		w.pod(fmt.Sprintf("p-%d", i), "burst")
	}
	w.awaitPlaced(addresses)
	// One more look after all are settled: nobody is placed beyond the addresses.
	eventually(t, func() string {
		refused := 0
		for name, node := range w.bound() {
			if node == "" && len(w.complaints(name)) > 0 {
				refused++
			}
		}
		if refused < addresses {
			return fmt.Sprintf("%d pods are told why they wait, want %d", refused, addresses)
		}
		return ""
	})
	on := map[string]int{}
	for name, node := range w.bound() {
		on[node]++
		if node == "" {
			w.awaitPending(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}, `0/3 nodes are available: 3 node(s) had no free address in network "burst"`)
		}
	}
	for _, node := range nodes {
		if on[node] != each {
			t.Errorf("%d pods are bound to %s, which has %d addresses", on[node], node, each)
		}
	}
}

// awaitPlaced waits until so many of the namespace's pods are bound.
func (w *world) awaitPlaced(want int) {
	w.t.Helper()
	eventually(w.t, func() string {
		if placed, pending := w.count(); placed != want {
			return fmt.Sprintf("%d pods are bound and %d pending, want %d bound", placed, pending, want)
		}
		return ""
	})
}

// releasesVariable sets how often an address is freed.
const releasesVariable = "NETPLANE_TEST_RELEASES"

// Often, because a pod that is woken before the data is there waits five
// minutes, but only now and then. In turn, the address goes free with its pod,
// and later than its pod, when the agent no longer reports it as held.
func TestAFreedAddressIsTakenWithinASecond(t *testing.T) {
	rounds := 1000
	if text := os.Getenv(releasesVariable); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatalf("reading %s: %v", releasesVariable, err)
		}
	}
	w := newWorld(t)
	offer := w.node("a", "phy-net1")
	w.block(w.network("data", "phy-net1", "10.20.0.0/16"), "a", "10.20.1.0/29")
	held := []v1alpha1.HeldAddresses{{Network: "data", Count: 6}} // one of seven is left
	offer.Status.Held = held
	w.updateStatus(offer)
	holder := w.pod("p-0", "data")
	w.awaitBound(holder)
	var slowest time.Duration
	var late int
	for i := range rounds {
		waiting := w.pod(fmt.Sprintf("p-%d", i+1), "data")
		w.awaitRejected(waiting)
		if i%2 == 1 {
			offer.Status.Held = append(held[:1:1], v1alpha1.HeldAddresses{Network: "data", Count: 1, PodUID: holder.UID})
			w.updateStatus(offer)
		}
		w.remove(holder)
		if i%2 == 1 {
			offer.Status.Held = held
			w.updateStatus(offer)
		}
		freed := time.Now()
		for w.get(waiting).Spec.NodeName == "" {
			if time.Since(freed) > soon {
				t.Fatalf("round %d: the address is free for %s, and nobody has taken it", i, soon)
			}
			time.Sleep(2 * time.Millisecond)
		}
		taken := time.Since(freed)
		if slowest = max(slowest, taken); taken > time.Second {
			late++
		}
		holder = waiting
	}
	t.Logf("%d releases, the slowest was taken after %s", rounds, slowest)
	if late > 0 {
		t.Errorf("%d of %d freed addresses were taken after more than a second, one after %s", late, rounds, slowest)
	}
}

func (w *world) get(pod *v1.Pod) *v1.Pod {
	w.t.Helper()
	var current v1.Pod
	if err := w.api.Get(w.t.Context(), client.ObjectKeyFromObject(pod), &current); err != nil {
		w.t.Fatal(err)
	}
	return &current
}

// remove deletes a pod at once, as kubelet does when all of it is gone.
func (w *world) remove(pod *v1.Pod) {
	w.t.Helper()
	if err := w.api.Delete(w.t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		w.t.Fatal(err)
	}
}

// awaitRejected waits until the scheduler has tried a pod in vain.
func (w *world) awaitRejected(pod *v1.Pod) {
	w.t.Helper()
	deadline := time.Now().Add(soon)
	for {
		for _, condition := range w.get(pod).Status.Conditions {
			if condition.Type == v1.PodScheduled && condition.Status == v1.ConditionFalse {
				return
			}
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("pod %s was not tried", pod.Name)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// The scheduler sees no pod that has ended; what its sandbox still holds, only
// the agent knows.
func TestACompletedPodStillHoldsItsAddress(t *testing.T) {
	w := newWorld(t)
	offer := w.node("a", "phy-net1")
	w.block(w.network("data", "phy-net1", "10.20.0.0/16"), "a", "10.20.1.0/29")
	job := w.pod("job", "data")
	w.awaitBound(job)
	held := []v1alpha1.HeldAddresses{{Network: "data", Count: 6}}
	offer.Status.Held = append(held[:1:1], v1alpha1.HeldAddresses{Network: "data", Count: 1, PodUID: job.UID})
	w.updateStatus(offer)
	job = w.get(job)
	job.Status.Phase = v1.PodSucceeded
	w.updateStatus(job)
	next := w.pod("next", "data")
	w.awaitPending(next, `1 node(s) had no free address in network "data"`)
	offer.Status.Held = held
	w.updateStatus(offer)
	w.awaitBound(next)
}

func TestAPodStartsOnANodeWhoseNodeNetworkCameFirst(t *testing.T) {
	w := newWorld(t)
	data := w.network("data", "phy-net1", "10.20.0.0/16")
	w.nodeNetwork("late", "phy-net1")
	pod := w.pod("p", "data")
	w.awaitPending(pod, "no nodes available to schedule pods")
	w.bareNode("late")
	w.awaitPending(pod, `1 node(s) held no address block of network "data"`)
	w.block(data, "late", "10.20.1.0/29")
	w.awaitBound(pod)
}

func TestANodeWithoutTheNICTakesNobody(t *testing.T) {
	w := newWorld(t)
	data := w.network("data", "phy-net1", "10.20.0.0/16")
	w.bareNode("early")
	pod := w.pod("p", "data")
	w.awaitPending(pod, "1 node(s) had no ready netplane agent")
	offer := w.nodeNetwork("early", "phy-net0")
	w.block(data, "early", "10.20.1.0/29")
	// It changes nothing for the first, which is left asleep.
	later := w.pod("later", "data")
	w.awaitPending(later, `1 node(s) had no NIC for network "data"`)
	offer.Status.PhysicalNetworks = append(offer.Status.PhysicalNetworks,
		v1alpha1.NodePhysicalNetwork{Name: "phy-net1", Interfaces: []string{"eth2"}, Ready: true, Reason: v1alpha1.ReasonInterfaceUp})
	w.updateStatus(offer)
	w.awaitBound(pod)
	w.awaitBound(later)
}

// While the victim ends, the preemptor is nominated: the victim's address is
// its own, though others wait for one, too.
func TestANominatedPodsAddressIsNotStolen(t *testing.T) {
	w := newWorld(t)
	w.create(&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "pressing"}, Value: 1000})
	offer := w.node("a", "phy-net1")
	w.block(w.network("data", "phy-net1", "10.20.0.0/16"), "a", "10.20.1.0/29")
	offer.Status.Held = []v1alpha1.HeldAddresses{{Network: "data", Count: 6}}
	w.updateStatus(offer)
	grace := int64(600) // nobody here ends a pod that is asked to end
	victim := w.pod("victim", "data", func(p *v1.Pod) { p.Spec.TerminationGracePeriodSeconds = &grace })
	w.awaitBound(victim)
	urgent := w.pod("urgent", "data", func(p *v1.Pod) { p.Spec.PriorityClassName = "pressing" })
	eventually(t, func() string {
		if w.get(urgent).Status.NominatedNodeName != "a" || w.get(victim).DeletionTimestamp == nil {
			return "no pod is preempted for the urgent one"
		}
		return ""
	})
	var thieves []*v1.Pod
	for i := range 5 {
		thief := w.pod(fmt.Sprintf("thief-%d", i), "data")
		w.awaitRejected(thief)
		thieves = append(thieves, thief)
	}
	w.remove(victim)
	w.awaitBound(urgent)
	for _, thief := range thieves {
		if node := w.get(thief).Spec.NodeName; node != "" {
			t.Errorf("%s was bound, too, and there was one address", thief.Name)
		}
	}
}

func TestPodsThatOthersBindAreCounted(t *testing.T) {
	w := newWorld(t)
	w.node("a", "phy-net1")
	w.block(w.network("data", "phy-net1", "10.20.0.0/16"), "a", "10.20.1.0/29")
	foreign := make([]*v1.Pod, 3)
	for i := range foreign {
		foreign[i] = w.pod(fmt.Sprintf("foreign-%d", i), "data", func(p *v1.Pod) {
			p.Spec.SchedulerName, p.Spec.NodeName = "another", "a"
		})
	}
	for i := range 6 {
		w.pod(fmt.Sprintf("own-%d", i), "data")
	}
	w.awaitPlaced(7)
	w.remove(foreign[0])
	w.remove(foreign[1])
	eventually(t, func() string {
		if placed, pending := w.count(); placed != 7 || pending != 0 {
			return fmt.Sprintf("after two foreign pods have gone, %d are bound and %d pending, want 7 and 0", placed, pending)
		}
		return ""
	})
}

func TestPodsWithoutNetworksCostNothing(t *testing.T) {
	w := newWorld(t)
	data := w.network("data", "phy-net1", "10.20.0.0/16")
	for i, node := range []string{"a", "b"} {
		w.node(node, "phy-net1")
		w.block(data, node, fmt.Sprintf("10.20.%d.0/29", i+1))
	}
	points := []string{"PreFilter", "Filter", "PreScore", "Score"}
	before := evaluations(t)
	for i := range 20 {
		w.pod(fmt.Sprintf("plain-%d", i), "")
	}
	w.awaitPlaced(20)
	after := evaluations(t)
	for _, point := range points {
		if asked := after[point] - before[point]; asked != 0 {
			t.Errorf("%s said more than Skip %v times about pods without networks", point, asked)
		}
	}
	w.awaitBound(w.pod("networked", "data"))
	control := evaluations(t)
	for _, point := range points {
		if control[point] == after[point] {
			t.Errorf("%s is not counted for a pod with networks either: the metric tells nothing", point)
		}
	}
}

// evaluations counts how often NetworkFit was asked at each extension point and
// did not skip the pod.
func evaluations(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, family := range families {
		if family.GetName() != "scheduler_plugin_evaluation_total" {
			continue
		}
		for _, metric := range family.GetMetric() {
			labels := map[string]string{}
			for _, label := range metric.GetLabel() {
				labels[label.GetName()] = label.GetValue()
			}
			if labels["plugin"] == "NetworkFit" {
				out[labels["extension_point"]] += metric.GetCounter().GetValue()
			}
		}
	}
	return out
}
