// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestATightNetworkIsPlacedOnANodeWithoutABlock(t *testing.T) {
	w := newTight(t, 1)
	pod := makePod("p", "data")
	state := w.mustPlace(pod, "a")
	if n := len(w.api.blocks); n != 0 {
		t.Fatalf("%d blocks were created in Reserve", n)
	}
	if result, status := w.PreBindPreFlight(t.Context(), state, pod, "a"); !status.IsSuccess() || result.AllowParallel {
		t.Fatalf("PreBindPreFlight answers %v, %v", result, answerOf(status))
	}
	if status := w.PreBind(t.Context(), state, pod, "a"); !status.IsSuccess() {
		t.Fatal(answerOf(status))
	}
	for _, block := range w.api.blocks {
		want := v1alpha1.IPBlockSpec{Network: "data", NetworkUID: "uid-data", CIDR: block.Spec.CIDR, NodeName: "a", NodeUID: "uid-a"}
		if diff := cmp.Diff(want, block.Spec); diff != "" {
			t.Errorf("block (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{v1alpha1.FinalizerIPBlock}, block.Finalizers); diff != "" {
			t.Errorf("finalizers (-want +got):\n%s", diff)
		}
	}
	if n := len(w.api.blocks); n != 1 {
		t.Errorf("%d blocks were created, want 1", n)
	}
	if _, status := w.PreBindPreFlight(t.Context(), state, pod, "a"); !status.IsSkip() {
		t.Errorf("with the block there PreBindPreFlight answers %v, want Skip", answerOf(status))
	}
}

func TestNothingIsToBindWhereAddressesAreFree(t *testing.T) {
	w := newTight(t, 1)
	w.claimedBy("a", netip.MustParsePrefix("10.0.1.8/29"))
	w.show()
	pod := makePod("p", "data")
	state := w.mustPlace(pod, "a")
	if _, status := w.PreBindPreFlight(t.Context(), state, pod, "a"); !status.IsSkip() {
		t.Errorf("PreBindPreFlight answers %v, want Skip", answerOf(status))
	}
	if got := w.inFlight(); len(got) != 0 {
		t.Errorf("reserved are %v", got)
	}
}

func TestABlockIsNotClaimedOnDemandOfANetworkThatIsNotTight(t *testing.T) {
	w := newTight(t, 1)
	if err := w.sources.networks.Update(makeNetwork("data")); err != nil {
		t.Fatal(err)
	}
	_, status := w.place(makePod("p", "data"), "a")
	if diff := cmp.Diff(unresolvable(`node(s) held no address block of network "data"`), answerOf(status)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

// 16 blocks serve 110 pods, wherever they are.
func TestEveryAddressOfATightNetworkIsUsed(t *testing.T) {
	w := newTight(t, 20)
	placed := 0
	for i := range 200 {
		for n := range 20 {
			node := string(rune('a' + (i+n)%20))
			pod := makePod(fmt.Sprint("p", i), "data")
			if state, status := w.place(pod, node); status.IsSuccess() {
				if status := w.bind(state, pod, node); !status.IsSuccess() {
					t.Fatalf("pod %d: %v", i, answerOf(status))
				}
				placed++
				break
			}
		}
	}
	if placed != 14*7+2*6 {
		t.Errorf("%d pods were placed, want %d", placed, 14*7+2*6)
	}
}

func TestPreBindOfAPodGetsItsBlock(t *testing.T) {
	w := newTight(t, 1)
	net, _ := lookup[*network](w.sources.networks, "data")
	candidates := slices.Collect(net.plan.Candidates("a"))
	forbidden := apierrors.NewForbidden(ipBlocks().GroupResource(), "data", errors.New("no"))
	tests := []struct {
		name    string
		arrange func(w *tight)
		block   netip.Prefix // the one that the node gets
		err     string
		creates int
	}{
		{name: "at once", arrange: func(*tight) {}, block: candidates[0], creates: 1},
		{
			name:    "though another node has its first choice",
			arrange: func(w *tight) { w.claimedBy("z", candidates[0]) },
			block:   candidates[1], creates: 2,
		},
		{
			name:    "though another scheduler made it for the same node",
			arrange: func(w *tight) { w.claimedBy("a", candidates[0]) },
			block:   candidates[0], creates: 1,
		},
		{
			name:    "though the node's agent has written its tunnel address into it",
			arrange: func(w *tight) { w.claimedBy("a", candidates[0]).Spec.VTEP = "192.168.0.2" },
			block:   candidates[0], creates: 1,
		},
		{
			name: "though the block of that name is for a Node that was deleted",
			arrange: func(w *tight) {
				w.claimedBy("a", candidates[0]).Spec.NodeUID = "an earlier one"
			},
			block: candidates[1], creates: 2,
		},
		{
			name: "though its agent is giving it back",
			arrange: func(w *tight) {
				now := w.now()
				w.claimedBy("a", candidates[0]).DeletionTimestamp = &now
			},
			block: candidates[1], creates: 2,
		},
		{
			name: "though the reply gets lost",
			arrange: func(w *tight) {
				w.api.before = func(create int) (bool, error) {
					if create == 1 {
						return true, context.DeadlineExceeded
					}
					return false, nil
				}
			},
			block: candidates[0], creates: 2,
		},
		{
			name: "unless the API server cannot be reached",
			arrange: func(w *tight) {
				w.api.before = func(int) (bool, error) { return false, errors.New("connection refused") }
			},
			err: `claiming a block of network "data" for node "a": connection refused`, creates: maxDoubts + 1,
		},
		{
			name:    "unless it is refused",
			arrange: func(w *tight) { w.api.before = func(int) (bool, error) { return false, forbidden } },
			err:     "forbidden", creates: 1,
		},
		{
			name: "unless none is left",
			arrange: func(w *tight) {
				for _, prefix := range candidates {
					w.claimedBy("z", prefix)
				}
			},
			err: "every block that is large enough is claimed by a node", creates: 16,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newTight(t, 1)
			pod := makePod("p", "data")
			state := w.mustPlace(pod, "a")
			test.arrange(w)
			status := w.PreBind(t.Context(), state, pod, "a")
			if test.err != "" {
				if status.IsSuccess() || !strings.Contains(status.Message(), test.err) {
					t.Errorf("answer %v, want an error with %q", answerOf(status), test.err)
				}
				w.forget(state, "a", pod)
				if got := w.inFlight(); len(got) != 0 {
					t.Errorf("reserved stay %v", got)
				}
			} else if !status.IsSuccess() {
				t.Fatal(answerOf(status))
			} else if on := w.inFlight(); len(on) != 1 || on[0] != "a "+test.block.String() {
				t.Errorf("the node has %v, want %s", on, test.block)
			}
			if w.api.creates > test.creates || w.api.creates == 0 {
				t.Errorf("%d requests, want %d", w.api.creates, test.creates)
			}
		})
	}
}
