// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/netplane/netplane/api/v1alpha1"
)

// activations notes which pods are tried again.
type activations []string

func (a *activations) Activate(_ klog.Logger, pods map[string]*v1.Pod) {
	*a = append(*a, slices.Sorted(maps.Keys(pods))...)
}

func TestPodsThatWaitForWhatHotPlugFreesAreTriedAgain(t *testing.T) {
	wholeNIC := func(n *v1alpha1.Network) { n.Spec.Plugin, n.Spec.PhysicalNet = v1alpha1.PluginHostDevice, "phy-fast" }
	placed := func(asked, has string) *v1.Pod {
		pod := makePod("running", asked)
		pod.Spec.NodeName = "n"
		if has == "none" {
			return pod
		}
		return attached(pod, has)
	}
	for name, test := range map[string]struct {
		before, after *v1.Pod
		want          []string
	}{
		"an interface is gone":              {placed("", "data=1"), placed("", ""), []string{"uid-waits"}},
		"one of two":                        {placed("data", "data=2"), placed("data", "data=1"), []string{"uid-waits"}},
		"what it never got is not asked":    {placed("data,backup", "backup=1"), placed("backup", "backup=1"), []string{"uid-waits"}},
		"another network's":                 {placed("", "backup=1"), placed("", ""), nil},
		"a NIC is back":                     {placed("", "fast=1"), placed("", ""), []string{"uid-waits-for-nic"}},
		"it is still there":                 {placed("data", "data=1"), placed("", "data=1"), nil},
		"it was attached":                   {placed("data", "none"), placed("data", "data=1"), nil},
		"one more":                          {placed("data", "data=1"), placed("data,data", "data=1"), nil},
		"nothing has changed":               {placed("data", "data=1"), placed("data", "data=1"), nil},
		"a fixed address instead":           {placed("[{name: data, sticky: true}]", "data=1"), placed("[{name: data, sticky: true}]", "data=0+1"), []string{"uid-waits"}},
		"a pod that waits changes its mind": {makePod("pending", "data"), makePod("pending", ""), nil},
	} {
		t.Run(name, func(t *testing.T) {
			pl := newPlugin(t, makeNetwork("data"), makeNetwork("backup"), makeNetwork("fast", wholeNIC), makeNetwork("faster", wholeNIC),
				makePod("waits", "data"), makePod("waits-for-nic", "faster"), placed("data", "data=1"))
			var got activations
			pl.sources.after = func(lag time.Duration, do func()) {
				if lag != freedLag {
					t.Errorf("a lag of %s", lag)
				}
				do()
			}
			pl.sources.freed(test.before, test.after) // nobody to tell yet
			pl.sources.tell(&got)
			pl.sources.freed(test.before, test.after)
			if diff := cmp.Diff(test.want, []string(got), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
