// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	perf "k8s.io/kubernetes/test/integration/scheduler_perf"
	"k8s.io/kubernetes/test/utils/client-go/ktesting"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/networkfit"
)

// patience is how long the pods of one measurement may take.
const patience = 25 * time.Minute

// BenchmarkThroughput measures pods per second of all profiles, in turn, and
// tells the ratios to the first of them.
func BenchmarkThroughput(b *testing.B) {
	s := read(b)
	perf.PluginNames = append(perf.PluginNames, networkfit.Name)
	results := map[profile]map[int][]float64{}
	for _, p := range s.profiles {
		results[p] = map[int][]float64{}
	}
	for round := range s.rounds {
		for _, p := range s.profiles {
			started := time.Now()
			rates := measure(b, p, round+1, s)
			line := fmt.Sprintf("round %d of %d: %-8s", round+1, s.rounds, p)
			for _, networks := range demands() {
				results[p][networks] = append(results[p][networks], rates[networks])
				line += fmt.Sprintf("  %s %.0f", label(networks), rates[networks])
			}
			tell(b, "%s  pods/s (%.0f s in all)", line, time.Since(started).Seconds())
		}
	}
	for _, p := range s.profiles {
		for _, networks := range demands() {
			tell(b, "bench scheduler pods-per-second/%s/%s %.1f", p, label(networks), median(results[p][networks]))
		}
	}
	for _, p := range s.profiles[1:] {
		name := "ratio"
		if p != netplane {
			name += "-" + string(p)
		}
		for _, networks := range demands() {
			ratio := median(ratios(results[p][networks], results[s.profiles[0]][networks]))
			tell(b, "bench scheduler %s/%s %.3f", name, label(networks), ratio)
		}
	}
}

// ratios are taken within a round, because the machine may be busier in one
// than in another.
func ratios(ours, theirs []float64) []float64 {
	out := make([]float64, len(ours))
	for i := range ours {
		out[i] = ours[i] / theirs[i]
	}
	return out
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// measure runs one profile once and returns pods per second by the number of
// networks.
func measure(b *testing.B, p profile, round int, s settings) map[int]float64 {
	b.Helper()
	dir := b.TempDir()
	// Where scheduler_perf leaves its own figures; nobody reads them here.
	if err := flag.Set("data-items-dir", dir); err != nil {
		b.Fatal(err)
	}
	file, err := writeWorkload(dir, p, s)
	if err != nil {
		b.Fatal(err)
	}
	run := &run{settings: s, profile: p, round: round, started: time.Now(), bound: map[string]*span{}, pprof: profiler{dir: s.pprof}}
	passed := b.Run(string(p), func(b *testing.B) {
		registry := frameworkruntime.Registry{networkfit.Name: run.plugin}
		perf.RunBenchmarkPerfScheduling(b, file, "netplane", registry,
			perf.WithNodeUpdateFn(run.equip), perf.WithPodsSchedulingTimeout(patience))
	})
	if !passed {
		b.Fatalf("%s: scheduler_perf failed: the reason stands further up", p)
	}
	run.finish()
	rates := map[int]float64{}
	for _, networks := range demands() {
		rate, err := run.rate(namespaceOf(networks))
		if err != nil {
			b.Fatalf("%s, %s: %v", p, label(networks), err)
		}
		rates[networks] = rate
	}
	return rates
}

// run is one cluster of scheduler_perf.
type run struct {
	settings settings
	profile  profile
	round    int
	started  time.Time
	// informers are the plugin's; nil if the profile does not have it.
	informers dynamicinformer.DynamicSharedInformerFactory

	mu    sync.Mutex
	bound map[string]*span // by namespace
	pprof profiler
	err   error // of the profiler
}

// span is when the first and the last of some pods were bound.
type span struct {
	names       map[string]bool
	first, last time.Time
}

// plugin makes NetworkFit. scheduler_perf passes no dynamic informers and
// knows no CRDs, so they are made here, before the scheduler looks for them.
func (r *run) plugin(ctx context.Context, args runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	if err := installCRDs(handle.KubeConfig()); err != nil {
		return nil, err
	}
	client, err := dynamic.NewForConfig(handle.KubeConfig())
	if err != nil {
		return nil, fmt.Errorf("making a dynamic client: %w", err)
	}
	r.informers = dynamicinformer.NewDynamicSharedInformerFactory(client, 0)
	sources, err := networkfit.NewSources(r.informers, handle.SharedInformerFactory().Core().V1().Pods().Informer())
	if err != nil {
		return nil, err
	}
	plugin, err := networkfit.Factory(sources)(ctx, args, handle)
	if err != nil {
		return nil, err
	}
	r.informers.Start(ctx.Done())
	r.informers.WaitForCacheSync(ctx.Done())
	return plugin, nil
}

// equip gives the nodes their networks and begins to watch what is bound. The
// objects are made for each profile: they fill the API server that all share
// the machine with.
func (r *run) equip(tCtx ktesting.TContext, _ *scheduler.Scheduler, _ *perf.Workload, nodes *v1.NodeList) error {
	config := tCtx.RESTConfig()
	if err := installCRDs(config); err != nil {
		return err
	}
	api, err := newClient(config)
	if err != nil {
		return err
	}
	if err := makeOffers(tCtx, api, nodes.Items, maxNetworks, r.blockSize()); err != nil {
		return err
	}
	if err := r.await(tCtx, len(nodes.Items)); err != nil {
		return err
	}
	if err := watchPods(tCtx, config, fields.OneTermNotEqualSelector("spec.nodeName", ""), r.saw); err != nil {
		return err
	}
	return report("%s: %d nodes with %d networks are made after %.0f s", r.profile, len(nodes.Items), maxNetworks, time.Since(r.started).Seconds())
}

// blockSize leaves room for twice the pods on a node, were they spread evenly.
func (r *run) blockSize() int32 {
	size := int32(64)
	for need := 2 * len(demands()) * r.settings.pods / r.settings.nodes; int(size) < need && size < 1024; {
		size *= 2
	}
	return size
}

// await waits until the plugin knows all nodes' networks and blocks.
func (r *run) await(ctx context.Context, nodes int) error {
	if r.informers == nil {
		return nil
	}
	for resource, want := range map[string]int{v1alpha1.ResourceNodeNetworks: nodes, v1alpha1.ResourceIPBlocks: maxNetworks * nodes} {
		store := r.informers.ForResource(v1alpha1.SchemeGroupVersion.WithResource(resource)).Informer().GetIndexer()
		err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, time.Minute, true, func(context.Context) (bool, error) {
			return len(store.ListKeys()) >= want, nil
		})
		if err != nil {
			return fmt.Errorf("waiting for the plugin to see %d %s: %w", want, resource, err)
		}
	}
	return nil
}

// saw notes when a pod was bound.
func (r *run) saw(pod *v1.Pod, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.bound[pod.Namespace]
	if s == nil {
		s = &span{names: map[string]bool{}, first: now}
		r.bound[pod.Namespace] = s
		if pod.Namespace != warmUp {
			r.err = errors.Join(r.err, r.pprof.startCPU(fmt.Sprintf("%s-%s-round-%d", r.profile, pod.Namespace, r.round)))
		}
	}
	if s.names[pod.Name] {
		return
	}
	s.names[pod.Name], s.last = true, now
	if pod.Namespace != warmUp && len(s.names) == r.settings.pods {
		r.err = errors.Join(r.err, r.pprof.stopCPU())
	}
}

// finish ends a profile that the last pods' absence has left open.
func (r *run) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = errors.Join(r.err, r.pprof.stopCPU())
}

// rate is the number of pods bound per second, from the first to the last.
func (r *run) rate(namespace string) (float64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.bound[namespace]
	if r.err != nil {
		return 0, fmt.Errorf("profiling: %w", r.err)
	}
	if s == nil || len(s.names) < r.settings.pods*9/10 {
		return 0, fmt.Errorf("not all pods were seen to be bound in namespace %s", namespace)
	}
	return float64(len(s.names)-1) / s.last.Sub(s.first).Seconds(), nil
}
