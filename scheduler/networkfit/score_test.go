// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/config"
)

func TestScoreIsTheMostUtilisedNetworks(t *testing.T) {
	// Blocks of 21 addresses for pods, so that a pod is worth a little less than five points.
	three := func(network string) []any {
		return []any{makeBlock(network, "n", 0), makeBlock(network, "n", 1), makeBlock(network, "n", 2)}
	}
	for name, test := range map[string]struct {
		networks string
		there    []*v1.Pod
		least    int64
		most     int64
	}{
		"an empty node":                 {"data", nil, 95, 4},
		"the last address":              {"data", pods(20, "data"), 0, 100},
		"one third":                     {"data", pods(6, "data"), 66, 33},
		"the fuller network counts":     {"data,management", append(pods(6, "data"), pods(13, "management")...), 33, 66},
		"networks not asked for do not": {"data", append(pods(6, "data"), pods(13, "management")...), 66, 33},
		"without addresses":             {"delegate", nil, 100, 0},
	} {
		t.Run(name, func(t *testing.T) {
			objects := append(three("data"), three("management")...)
			objects = append(objects, makeNode("n", up("data", "management", "delegate")), makeNetwork("data"), makeNetwork("management"),
				makeNetwork("delegate", func(n *v1alpha1.Network) { n.Spec.Subnet, n.Spec.BlockSize = "", 0 }))
			pl := newPlugin(t, objects...)
			state, pod, info := newCycleState(), makePod("p", test.networks), newNodeInfo("n", test.there...)
			if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
				t.Fatal(status)
			}
			if status := pl.PreScore(t.Context(), state, pod, nil); !status.IsSuccess() {
				t.Fatal(status)
			}
			got := map[config.ScoringStrategy]int64{}
			for _, strategy := range []config.ScoringStrategy{config.LeastUtilized, config.MostUtilized} {
				pl.args.ScoringStrategy = strategy
				score, status := pl.Score(t.Context(), state, pod, info)
				if !status.IsSuccess() {
					t.Fatal(status)
				}
				got[strategy] = score
			}
			want := map[config.ScoringStrategy]int64{config.LeastUtilized: test.least, config.MostUtilized: test.most}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("scores (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPreScoreSkipsPodsWithoutNetworks(t *testing.T) {
	// PreScore runs also where PreFilter was skipped and has left nothing.
	if got := answerOf(newPlugin(t).PreScore(t.Context(), newCycleState(), makePod("p", ""), nil)); got != skip() {
		t.Errorf("PreScore answered %v, want Skip", got)
	}
}

func TestScoreExtensionsAreNotNeeded(t *testing.T) {
	if newPlugin(t).ScoreExtensions() != nil {
		t.Error("scores must be absolute: one that is normalised over nodes cannot be shared between pods with one signature")
	}
}
