// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	fwk "k8s.io/kube-scheduler/framework"
)

// cluster is a plugin and the nodes of a cluster with a block of each network.
func cluster(b *testing.B, nodes int, names []string) (*NetworkFit, []fwk.NodeInfo) {
	var objects []any
	for _, name := range names {
		objects = append(objects, makeNetwork(name))
	}
	infos := make([]fwk.NodeInfo, 0, nodes)
	for i := range nodes {
		name := fmt.Sprint("node-", i)
		objects = append(objects, makeNode(name, up(names...)))
		for j, network := range names {
			block := makeBlock(network, name, j)
			block.Name = fmt.Sprintf("%s-%s", block.Name, name)
			objects = append(objects, block)
		}
		infos = append(infos, newNodeInfo(name, pods(3, strings.Join(names, ","))...))
	}
	return newPlugin(b, objects...), infos
}

// Compare memoised with recomputed, which is what Filter would cost if nothing
// were remembered: one operation is one node.
func BenchmarkFilter(b *testing.B) {
	all := []string{"data", "management", "backup", "storage"}
	for _, count := range []int{1, 2, 4} {
		asked := all[:count]
		pl, infos := cluster(b, 5000, all)
		state, pod := newCycleState(), makePod("p", strings.Join(asked, ","))
		if _, status := pl.PreFilter(b.Context(), state, pod, nil); !status.IsSuccess() {
			b.Fatal(status)
		}
		for _, way := range []string{"recomputed", "memoised"} {
			b.Run(fmt.Sprintf("%d-networks/%s", count, way), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					info := infos[i%len(infos)]
					if way == "recomputed" {
						pl.sources.views.changed(info.Node().Name)
					}
					if status := pl.Filter(b.Context(), state, pod, info); !status.IsSuccess() {
						b.Fatal(status)
					}
				}
			})
		}
	}
}

// As many workers as the framework has ask for different nodes at once.
func BenchmarkFilterInParallel(b *testing.B) {
	pl, infos := cluster(b, 5000, []string{"data"})
	state, pod := newCycleState(), makePod("p", "data")
	if _, status := pl.PreFilter(b.Context(), state, pod, nil); !status.IsSuccess() {
		b.Fatal(status)
	}
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for i := 0; p.Next(); i++ {
			if status := pl.Filter(b.Context(), state, pod, infos[i%len(infos)]); !status.IsSuccess() {
				b.Error(status)
			}
		}
	})
}

// What a placement costs: the node that took the last pod is counted anew.
func BenchmarkCountAnew(b *testing.B) {
	for _, there := range []int{10, 100} {
		b.Run(fmt.Sprintf("%d-pods", there), func(b *testing.B) {
			pl := newPlugin(b, makeNetwork("data"), makeNode("n", up("data")), makeBlock("data", "n", 0))
			info := newNodeInfo("n", slices.Repeat(pods(1, "data"), there)...)
			seen := pl.sources.view(info.node)
			b.ReportAllocs()
			for b.Loop() {
				info.generation++
				if load := seen.load(info, pl.sources); load.Of("data") != there {
					b.Fatal(load)
				}
			}
		})
	}
}

// What each pod costs before any node is looked at: its signature, made into
// text as the framework does, when it enters the queue, and PreFilter.
func BenchmarkPod(b *testing.B) {
	pl, _ := cluster(b, 1, []string{"data", "management", "backup", "storage"})
	for _, asked := range []string{"", "data", "data,management,backup,storage"} {
		pod := makePod("p", asked)
		name := fmt.Sprintf("%d-networks", len(strings.FieldsFunc(asked, func(r rune) bool { return r == ',' })))
		b.Run(name+"/SignPod", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				fragments, _ := pl.SignPod(b.Context(), pod)
				if text, err := json.Marshal(fragments); err != nil || len(text) == 0 {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/PreFilter", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, status := pl.PreFilter(b.Context(), newCycleState(), pod, nil); !status.IsSuccess() && !status.IsSkip() {
					b.Fatal(status)
				}
			}
		})
	}
}
