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
			got := map[config.ScoringType]int64{}
			for _, strategy := range []config.ScoringType{config.LeastUtilized, config.MostUtilized} {
				pl.args.ScoringStrategy.Type = strategy
				score, status := pl.Score(t.Context(), state, pod, info)
				if !status.IsSuccess() {
					t.Fatal(status)
				}
				got[strategy] = score
			}
			want := map[config.ScoringType]int64{config.LeastUtilized: test.least, config.MostUtilized: test.most}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("scores (-want +got):\n%s", diff)
			}
		})
	}
}

func TestScoreWeighsNetworks(t *testing.T) {
	// With the pod on it data is utilised by 2/7, management by 5/7.
	objects := []any{makeNode("n", up("data", "management")), makeNetwork("data"), makeNetwork("management"), makeBlock("data", "n", 0), makeBlock("management", "n", 1)}
	there := append(pods(1, "data"), pods(4, "management")...)
	for name, test := range map[string]struct {
		networks string
		weights  []config.NetworkWeight
		want     int64
	}{
		"all alike":                                  {"data,management", nil, 28},
		"all heavy":                                  {"data,management", []config.NetworkWeight{{Name: "data", Weight: 9}, {Name: "management", Weight: 9}}, 28},
		"the fuller one is the heavier":              {"data,management", []config.NetworkWeight{{Name: "management", Weight: 4}}, 28},
		"the fuller one is lighter":                  {"data,management", []config.NetworkWeight{{Name: "data", Weight: 2}}, 64},
		"the fuller one hardly matters":              {"data,management", []config.NetworkWeight{{Name: "data", Weight: 100}}, 71},
		"a weight is no matter for one network":      {"management", []config.NetworkWeight{{Name: "management", Weight: 7}}, 28},
		"the weights of others do not matter either": {"management", []config.NetworkWeight{{Name: "data", Weight: 7}}, 28},
	} {
		t.Run(name, func(t *testing.T) {
			pl := newPlugin(t, objects...)
			pl.args.ScoringStrategy.Networks = test.weights
			state, pod := newCycleState(), makePod("p", test.networks)
			if _, status := pl.PreFilter(t.Context(), state, pod, nil); !status.IsSuccess() {
				t.Fatal(status)
			}
			got, status := pl.Score(t.Context(), state, pod, newNodeInfo("n", there...))
			if !status.IsSuccess() || got != test.want {
				t.Errorf("score %d (%v), want %d", got, status, test.want)
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
