// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipclaim

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

const grace = time.Minute

// facts are those of a claim that a pod had, and that nothing uses.
func facts(change ...func(*Facts)) *Facts {
	f := &Facts{
		Claim: &v1alpha1.IPClaim{
			Spec: v1alpha1.IPClaimSpec{
				Network: "data", NetworkUID: "u", Address: "10.10.254.5", ReclaimPolicy: v1alpha1.IPClaimRetain,
				Owner: v1alpha1.IPClaimOwner{Kind: v1alpha1.IPClaimOwnerPod, Namespace: "team", Name: "db-0", Interface: "net1"},
			},
			Status: v1alpha1.IPClaimStatus{PodUID: "u0", PodName: "db-0", NodeName: "a"},
		},
		Finalizer: true,
		Pod:       PodEnded,
		Node:      NodeServes,
		Grace:     grace,
		IdleFor:   vacateAfter,
	}
	for _, c := range change {
		c(f)
	}
	return f
}

func never(f *Facts) {
	f.Pod, f.Node, f.Finalizer, f.IdleFor = PodNone, NodeNone, false, 0
	f.Claim.Status = v1alpha1.IPClaimStatus{}
}

func waits(f *Facts) {
	f.Next, f.IdleFor = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "db-0", UID: "u1"}}, 0
}

func pod(state PodState) func(*Facts)   { return func(f *Facts) { f.Pod = state } }
func node(state NodeState) func(*Facts) { return func(f *Facts) { f.Node = state } }
func quiet(d time.Duration) func(*Facts) {
	return func(f *Facts) { f.QuietFor = d }
}
func network(state NetworkState) func(*Facts) { return func(f *Facts) { f.Network = state } }

func held(f *Facts)      { f.Held, f.QuietFor = true, 0 }
func elsewhere(f *Facts) { f.Elsewhere = "b" }
func unnoted(f *Facts)   { f.Node, f.Claim.Status.NodeName = NodeNone, "" }
func lives(f *Facts)     { f.Pod, f.PodNode = PodLives, "a" }
func deleted(f *Facts)   { f.Claim.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }
func free(f *Facts)      { f.Claim.Spec.ReclaimPolicy = v1alpha1.IPClaimDelete }
func released(f *Facts) {
	f.Finalizer = false
}
func said(reason, message string) func(*Facts) {
	return func(f *Facts) {
		f.Claim.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionBound, Status: metav1.ConditionFalse, Reason: reason, Message: message}}
	}
}

func TestDecide(t *testing.T) {
	const absent = "interface net1 of pod team/db-0 is not there: the address is kept for it"
	tests := map[string]struct {
		facts           *Facts
		action          Action
		reason, message string // the message holds it
		wait            time.Duration
	}{
		// The first pod.
		"a claim that nobody has used":            {facts(never), Vacate, v1alpha1.ReasonOwnerAbsent, absent, 0},
		"it has said so":                          {facts(never, said(v1alpha1.ReasonOwnerAbsent, absent)), Keep, v1alpha1.ReasonOwnerAbsent, "", 0},
		"its first pod comes":                     {facts(never, waits), Hold, "", "", 0},
		"its first pod gets it":                   {facts(never, waits, func(f *Facts) { f.Finalizer = true }), Hand, v1alpha1.ReasonBound, "pod team/db-0 may use the address", 0},
		"its pod is bound":                        {facts(lives, unnoted), Note, "", "", 0},
		"its pod is not bound yet":                {facts(pod(PodLives), unnoted), Keep, "", "", 0},
		"its pod runs":                            {facts(lives), Keep, "", "", 0},
		"its pod runs, another waits":             {facts(lives, waits), Keep, "", "", 0},
		"the address is none of the Network's":    {facts(never, waits, func(f *Facts) { f.Invalid = "10.9.9.9 does not lie" }), Vacate, v1alpha1.ReasonInvalidAddress, "10.9.9.9 does not lie", 0},
		"the Network is not there yet":            {facts(never, network(NetworkAbsent), func(f *Facts) { f.Claim.Spec.NetworkUID = "" }), Vacate, v1alpha1.ReasonNetworkAbsent, `there is no Network "data"`, 0},
		"the namespace is not there yet":          {facts(never, func(f *Facts) { f.NamespaceGone = true }), Vacate, v1alpha1.ReasonOwnerAbsent, absent, 0},
		"an admin's claim to free waits for it":   {facts(never, free), Vacate, v1alpha1.ReasonOwnerAbsent, absent, 0},
		"its pod went before it was handed to it": {facts(never, free, func(f *Facts) { f.Finalizer = true }), Delete, "", "", 0},

		// The next pod.
		"the former pod ended":                       {facts(waits), Hand, v1alpha1.ReasonBound, "", 0},
		"it ended, its node does not answer":         {facts(waits, node(NodeSilent)), Hand, v1alpha1.ReasonBound, "", 0},
		"it ended, but the address is not back":      {facts(waits, held), Report, v1alpha1.ReasonFormerPodRemains, "node a has not given back what former pod team/db-0 had", 0},
		"it ended, held, and the node is silent":     {facts(waits, held, node(NodeSilent)), Report, v1alpha1.ReasonFormerNodeUnknown, "node a, where former pod team/db-0 ran, does not answer", 0},
		"it vanished before any node was noted":      {facts(waits, unnoted, pod(PodVanished)), Hand, v1alpha1.ReasonBound, "", 0},
		"it vanished":                                {facts(waits, pod(PodVanished), quiet(time.Second)), Report, v1alpha1.ReasonFormerPodRemains, "was deleted before node a said that it had ended: the node gets 1m0s to tell", grace - time.Second},
		"it vanished, and the node has not objected": {facts(waits, pod(PodVanished), quiet(grace)), Hand, v1alpha1.ReasonBound, "", 0},
		"it vanished, and the node objects":          {facts(waits, pod(PodVanished), held), Report, v1alpha1.ReasonFormerPodRemains, "has not given back", 0},
		"it vanished, and the node is silent":        {facts(waits, pod(PodVanished), node(NodeSilent), quiet(time.Hour)), Report, v1alpha1.ReasonFormerNodeUnknown, "repair the node, delete it, or fence it with the taint node.kubernetes.io/out-of-service", 0},
		"it vanished, and the node is fenced":        {facts(waits, pod(PodVanished), node(NodeFenced)), Hand, v1alpha1.ReasonBound, "", 0},
		"it vanished from a fenced node that held":   {facts(waits, pod(PodVanished), node(NodeFenced), held), Hand, v1alpha1.ReasonBound, "", 0},
		"it vanished, and the node is deleted":       {facts(waits, pod(PodVanished), node(NodeGone)), Report, v1alpha1.ReasonFormerNodeUnknown, "is gone: it gets 1m0s to stop", grace},
		"the node has been gone for long":            {facts(waits, pod(PodVanished), node(NodeGone), quiet(grace)), Hand, v1alpha1.ReasonBound, "", 0},

		// Pods that the API server has forgotten.
		"another node holds it for an unknown pod":    {facts(never, waits, elsewhere), Report, v1alpha1.ReasonFormerPodRemains, "node b has not given back the address, which a pod has there that is gone from the API", 0},
		"the former pod ended, another node holds it": {facts(waits, elsewhere), Report, v1alpha1.ReasonFormerPodRemains, "node b has not given back", 0},
		"another node holds it, and nobody wants it":  {facts(elsewhere), Keep, "", "", 0},
		"its pod runs, and another node holds it":     {facts(lives, elsewhere), Keep, "", "", 0},
		"its claim is deleted, another node holds it": {facts(deleted, elsewhere), Report, v1alpha1.ReasonFormerPodRemains, "node b has not given back", 0},

		// No next pod.
		"the pod is gone a moment":                 {facts(func(f *Facts) { f.IdleFor = time.Second }), Keep, "", "", vacateAfter - time.Second},
		"the pod is gone":                          {facts(), Vacate, v1alpha1.ReasonOwnerAbsent, absent, 0},
		"the pod vanished":                         {facts(pod(PodVanished)), Keep, "", "", grace},
		"the pod is gone, the claim has its time":  {facts(free), Delete, "", "", 0},
		"the pod vanished, the claim has its time": {facts(free, pod(PodVanished)), Keep, "", "", grace},
		"the address is held, the claim is over":   {facts(free, held), Keep, "", "", 0},
		"the namespace is gone":                    {facts(func(f *Facts) { f.NamespaceGone = true }), Delete, "", "", 0},
		"the Network is being deleted":             {facts(network(NetworkTerminating)), Delete, "", "", 0},
		"the Network is gone, a pod waits":         {facts(waits, network(NetworkAbsent)), Delete, "", "", 0},
		"the Network is gone, the pod runs":        {facts(lives, network(NetworkAbsent)), Keep, "", "", 0},

		// The claim is deleted.
		"deleted, its pod runs":          {facts(deleted, lives), Keep, "", "", 0},
		"deleted, its pod is gone":       {facts(deleted), Release, "", "", 0},
		"deleted, nobody has used it":    {facts(never, deleted), Keep, "", "", 0},
		"deleted, a pod waits":           {facts(deleted, waits), Release, "", "", 0},
		"deleted and released":           {facts(deleted, released), Keep, "", "", 0},
		"deleted, its pod vanished":      {facts(deleted, pod(PodVanished)), Report, v1alpha1.ReasonFormerPodRemains, "the node gets 1m0s", grace},
		"deleted, and the node is lost":  {facts(deleted, pod(PodVanished), node(NodeSilent)), Report, v1alpha1.ReasonFormerNodeUnknown, "does not answer", 0},
		"deleted, and the node is fated": {facts(deleted, pod(PodVanished), node(NodeFenced)), Release, "", "", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := Decide(tt.facts)
			if got.Action != tt.action || got.Wait != tt.wait || got.Condition.Reason != tt.reason || !strings.Contains(got.Condition.Message, tt.message) {
				t.Errorf("action %d (%s: %s), wait %s; want %d (%s: %s), wait %s", got.Action, got.Condition.Reason, got.Condition.Message, got.Wait, tt.action, tt.reason, tt.message, tt.wait)
			}
			want := metav1.ConditionFalse
			if tt.action == Hand {
				want = metav1.ConditionTrue
			}
			if got.Condition.Reason != "" && (got.Condition.Status != want || got.Condition.Type != v1alpha1.ConditionBound) {
				t.Errorf("condition %s is %s", got.Condition.Type, got.Condition.Status)
			}
		})
	}
}

// A condition is written once, and the claim is looked at again all the same.
func TestWhatIsSaidIsNotRepeated(t *testing.T) {
	first := Decide(facts(waits, pod(PodVanished)))
	f := facts(waits, pod(PodVanished), quiet(time.Second))
	f.Claim.Status.Conditions = []metav1.Condition{first.Condition}
	if got := Decide(f); first.Action != Report || got.Action != Keep || got.Wait != grace-time.Second {
		t.Errorf("first %d, then %d after %s", first.Action, got.Action, got.Wait)
	}
}

func TestEndedByKubelet(t *testing.T) {
	collected := []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: podGC}}
	evicted := []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonTerminationByKubelet}}
	for name, tt := range map[string]struct {
		status corev1.PodStatus
		want   bool
	}{
		"running":                      {corev1.PodStatus{Phase: corev1.PodRunning}, false},
		"succeeded":                    {corev1.PodStatus{Phase: corev1.PodSucceeded}, true},
		"failed":                       {corev1.PodStatus{Phase: corev1.PodFailed}, true},
		"evicted":                      {corev1.PodStatus{Phase: corev1.PodFailed, Conditions: evicted}, true},
		"declared failed without node": {corev1.PodStatus{Phase: corev1.PodFailed, Conditions: collected}, false},
	} {
		if got := endedByKubelet(&corev1.Pod{Status: tt.status}); got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
	}
}
