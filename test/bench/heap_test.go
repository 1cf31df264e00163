// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/networkfit"
	"github.com/netplane/netplane/test/integration/apiserver"
)

// heapNetworks is the number of networks that each node has a NIC and a block of.
const heapNetworks = 3

// profileEvery is how many bytes a sample of the heap profile stands for.
const profileEvery = 1024

// launch runs an API server in processes of its own until the benchmark ends.
// Those who use it end before it does, because it waits for open watches.
func launch(b *testing.B) *rest.Config {
	b.Helper()
	return apiserver.Start(b, func(env *envtest.Environment) error {
		env.CRDDirectoryPaths = []string{crds}
		return nil
	})
}

// BenchmarkHeap measures what the plugin's caches hold for each node: the heap
// after a garbage collection with the objects less the heap without them, when
// each node has been asked about once.
func BenchmarkHeap(b *testing.B) {
	s := read(b)
	profiles := profiler{dir: s.pprof}
	if profiles.dir != "" {
		runtime.MemProfileRate = profileEvery
	}
	config := launch(b)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	api, err := newClient(config)
	if err != nil {
		b.Fatal(err)
	}
	nodes, err := makeNodes(ctx, api, s.nodes)
	if err != nil {
		b.Fatal(err)
	}
	if err := makeOffers(ctx, api, nodes, heapNetworks, 64); err != nil {
		b.Fatal(err)
	}
	tell(b, "%d nodes with %d networks are made", s.nodes, heapNetworks)

	infos := make([]fwk.NodeInfo, len(nodes))
	for i := range nodes {
		info := framework.NewNodeInfo()
		info.SetNode(&nodes[i])
		infos[i] = info
	}
	before := heap()
	if err := profiles.heap("heap-before"); err != nil {
		b.Fatal(err)
	}
	plugin, dynamic := startPlugin(ctx, b, config)
	awaitFits(ctx, b, plugin, infos)
	used := heap() - before
	if err := profiles.heap("heap-after"); err != nil {
		b.Fatal(err)
	}
	runtime.KeepAlive(infos)
	runtime.KeepAlive(plugin)
	runtime.KeepAlive(dynamic)
	tell(b, "bench scheduler heap-bytes-per-node %.0f", float64(used)/float64(len(nodes)))
}

// heap is what is in use after everything else was collected. Finalizers and
// pools keep things for a cycle or two.
func heap() int64 {
	var stats runtime.MemStats
	for range 4 {
		runtime.GC()
		time.Sleep(200 * time.Millisecond)
	}
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// startPlugin makes the plugin on caches that are filled.
func startPlugin(ctx context.Context, b *testing.B, config *rest.Config) (fwk.FilterPlugin, dynamicinformer.DynamicSharedInformerFactory) {
	b.Helper()
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		b.Fatal(err)
	}
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		b.Fatal(err)
	}
	custom, core := dynamicinformer.NewDynamicSharedInformerFactory(client, 0), informers.NewSharedInformerFactory(set, 0)
	sources, err := networkfit.NewSources(custom, core.Core().V1().Pods().Informer())
	if err != nil {
		b.Fatal(err)
	}
	plugin, err := networkfit.New(nil, sources)
	if err != nil {
		b.Fatal(err)
	}
	core.Start(ctx.Done())
	custom.Start(ctx.Done())
	core.WaitForCacheSync(ctx.Done())
	custom.WaitForCacheSync(ctx.Done())
	return plugin, custom
}

// awaitFits asks the plugin about each node with a pod on all networks, so
// that whatever it remembers of a node is there, and fails if one does not fit.
func awaitFits(ctx context.Context, b *testing.B, plugin fwk.FilterPlugin, infos []fwk.NodeInfo) {
	b.Helper()
	var names []string
	for i := range heapNetworks {
		names = append(names, networkName(i))
	}
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: "p", Namespace: "default", UID: "p", Annotations: map[string]string{v1alpha1.AnnotationNetworks: strings.Join(names, ",")},
	}}
	before, ok := plugin.(fwk.PreFilterPlugin)
	if !ok {
		b.Fatal("NetworkFit is no PreFilter plugin")
	}
	state := framework.NewCycleState()
	if _, status := before.PreFilter(ctx, state, pod, infos); !status.IsSuccess() {
		b.Fatal(fmt.Errorf("PreFilter: %w", status.AsError()))
	}
	for _, info := range infos {
		if status := plugin.Filter(ctx, state, pod, info); !status.IsSuccess() {
			b.Fatalf("Filter of node %s: %v", info.Node().Name, status.AsError())
		}
	}
}
