// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/schedulerprocess"
)

// The scheduler tries a gang as a whole, reserving for each member, and takes
// all back where one does not fit (KEP-4671): nothing of ours may stay behind.
func TestAGangWithoutRoomForAllTakesNothing(t *testing.T) {
	w := newWorldWithGangs(t)
	const size = 4
	offer := w.node("a", "phy-net1")
	w.block(w.network("data", "phy-net1", "10.20.0.0/16"), "a", "10.20.1.0/29")
	setFree := func(free int) {
		offer.Status.Held = nil
		if free < 7 {
			offer.Status.Held = []v1alpha1.HeldAddresses{{Network: "data", Count: int32(7 - free)}}
		}
		w.updateStatus(offer)
	}
	setFree(size - 1)
	group := w.gang("gang", size)
	for i := range size {
		w.pod(fmt.Sprintf("member-%d", i), "data", inGroup(group))
	}
	w.awaitGangRejected(group)
	if placed, _ := w.count(); placed != 0 {
		t.Fatalf("%d members of the gang are bound, want none: there is room for %d of %d", placed, size-1, size)
	}
	// What the gang had reserved for the trial is free again, all of it.
	var singles []*v1.Pod
	for i := range size - 1 {
		single := w.pod(fmt.Sprintf("single-%d", i), "data")
		w.awaitBound(single)
		singles = append(singles, single)
	}
	for _, single := range singles {
		w.remove(single)
	}
	setFree(size)
	w.awaitPlaced(size)
	// And what the gang holds is counted, member by member.
	w.awaitPending(w.pod("late", "data"), `1 node(s) had no free address in network "data"`)
}

// On demand blocks are promised when a member is reserved for, and created only
// when all of the gang is about to be bound.
func TestAGangWithoutRoomForAllClaimsNoBlock(t *testing.T) {
	w := newWorldWithGangs(t)
	w.node("a", "phy-net1")
	w.node("b", "phy-net1")
	tight := w.network("tight", "phy-net1", "10.50.0.0/28") // two blocks
	meta.SetStatusCondition(&tight.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionTight, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonFewBlocksLeft})
	w.updateStatus(tight)
	const size = 16
	group := w.gang("gang", size)
	for i := range size {
		w.pod(fmt.Sprintf("member-%d", i), "tight", inGroup(group))
	}
	w.awaitGangRejected(group)
	if placed, _ := w.count(); placed != 0 {
		t.Errorf("%d members of the gang are bound, want none: there is no room for %d", placed, size)
	}
	if blocks := w.blocks(); len(blocks) != 0 {
		t.Errorf("a gang that is not placed has claimed blocks: %v", blocks)
	}
	small := w.gang("small", 3)
	for i := range 3 {
		w.pod(fmt.Sprintf("small-%d", i), "tight", inGroup(small))
	}
	w.awaitPlaced(3)
	if blocks := w.blocks(); len(blocks) == 0 {
		t.Error("a gang is placed, and no block was claimed for it")
	}
}

func (w *world) blocks() []v1alpha1.IPBlockSpec {
	w.t.Helper()
	var list v1alpha1.IPBlockList
	if err := w.api.List(w.t.Context(), &list); err != nil {
		w.t.Fatal(err)
	}
	var out []v1alpha1.IPBlockSpec
	for i := range list.Items {
		out = append(out, list.Items[i].Spec)
	}
	return out
}

// newWorldWithGangs has an API server and a scheduler of its own, for gangs
// are behind a feature gate.
func newWorldWithGangs(t *testing.T) *world {
	t.Helper()
	const gate = "GenericWorkload=true"
	config, api := ownServer(t, apiserver.WithAPIServerFlag("feature-gates", gate), apiserver.WithAPIServerFlag("runtime-config", "scheduling.k8s.io/v1beta1=true"))
	file, err := schedulerprocess.WriteConfig(schedulerprocess.Shipped, config, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	schedulerprocess.Start(t, file, "--leader-elect=false", "--feature-gates="+gate)
	return newWorldAt(t, api)
}

// awaitGangRejected waits until the scheduler has tried a gang in vain.
func (w *world) awaitGangRejected(group *schedulingv1beta1.PodGroup) {
	w.t.Helper()
	eventually(w.t, func() string {
		current := &schedulingv1beta1.PodGroup{}
		if err := w.api.Get(w.t.Context(), client.ObjectKeyFromObject(group), current); err != nil {
			return err.Error()
		}
		if scheduled := meta.FindStatusCondition(current.Status.Conditions, schedulingv1beta1.PodGroupInitiallyScheduled); scheduled == nil || scheduled.Status != metav1.ConditionFalse {
			return fmt.Sprintf("the gang has not been tried in vain: its conditions are %v", current.Status.Conditions)
		}
		return ""
	})
}

// gang makes a group of pods that start together or not at all.
func (w *world) gang(name string, size int32) *schedulingv1beta1.PodGroup {
	w.t.Helper()
	group := &schedulingv1beta1.PodGroup{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace},
		Spec: schedulingv1beta1.PodGroupSpec{
			SchedulingPolicy: schedulingv1beta1.PodGroupSchedulingPolicy{Gang: &schedulingv1beta1.GangSchedulingPolicy{MinCount: size}},
		},
	}
	w.create(group)
	return group
}

func inGroup(group *schedulingv1beta1.PodGroup) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Spec.SchedulingGroup = &v1.PodSchedulingGroup{PodGroupName: &group.Name} }
}
