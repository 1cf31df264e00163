// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchendpoints

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/figures"
)

// manifests are where the controller's role is.
const manifests = "../../manifests/base"

// podsPerService is the size of a Service in a large cluster.
const podsPerService = 100

// churnRate is how many pods a second are replaced: what Kubernetes' own tests
// of scale ask of a cluster (sig-scalability's thresholds).
const churnRate = 20

// crowd are the pods of a large cluster, every fifth of which is on networks.
type crowd struct {
	*world
	pods, services int
}

// make makes the i-th pod. Those of one Service are on as many nodes.
func (c crowd) make(ctx context.Context, i int) error {
	if i%5 == 0 {
		return c.makePod(ctx, fmt.Sprintf("app-%d", i/5%c.services), i, true, true)
	}
	return c.makePod(ctx, "plain", i, false, true)
}

// replace has another pod take the i-th one's place.
func (c crowd) replace(ctx context.Context, i int) error {
	app := "plain"
	if i%5 == 0 {
		app = fmt.Sprintf("app-%d", i/5%c.services)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: podName(app, i)}}
	if err := c.Delete(ctx, pod, client.GracePeriodSeconds(0)); err != nil {
		return fmt.Errorf("removing pod %d: %w", i, err)
	}
	return c.make(ctx, i)
}

// published is content when the slices tell of every pod, by its present UID.
func (c crowd) published(ctx context.Context) error {
	time.Sleep(time.Second)
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
		return err
	}
	living := map[types.UID]bool{}
	for i := range pods.Items {
		living[pods.Items[i].UID] = true
	}
	var list discoveryv1.EndpointSliceList
	if err := c.List(ctx, &list, client.MatchingLabels{discoveryv1.LabelManagedBy: v1alpha1.EndpointSliceManagedBy}); err != nil {
		return err
	}
	found := 0
	for i := range list.Items {
		for j := range list.Items[i].Endpoints {
			if of := list.Items[i].Endpoints[j].TargetRef; of != nil && living[of.UID] {
				found++
			}
		}
	}
	if want := 2 * 2 * len(networkNames()) * (c.pods / 5); found != want {
		return fmt.Errorf("%d of %d endpoints", found, want)
	}
	return nil
}

// BenchmarkMemory looks at the whole controller, as it is shipped, in a large
// cluster: at rest, and while pods are replaced.
func BenchmarkMemory(b *testing.B) {
	pods, seconds := figures.Setting(b, "CLUSTER_PODS", 50000), figures.Setting(b, "CHURN_SECONDS", 180)
	c := crowd{world: start(b, (pods+podsPerNode-1)/podsPerNode), pods: pods, services: pods / 5 / podsPerService}
	began := time.Now()
	parallel(b, pods, c.make)
	parallel(b, c.services, func(ctx context.Context, i int) error {
		of := fmt.Sprintf("app-%d", i)
		return c.makeService(ctx, of, of, true)
	})
	figures.Say(b, "memory: %d pods, of them %d on networks behind %d Services, made in %.0fs", pods, pods/5, c.services, time.Since(began).Seconds())

	pid := c.runOurs(b)
	await(b, "all endpoints to be published", func() error { return c.published(b.Context()) })
	published := memory(b, pid, "VmRSS")
	time.Sleep(time.Minute)
	settled := memory(b, pid, "VmRSS")
	figures.Say(b, "memory: %.0f MiB when all was published, %.0f MiB a minute later, at most %.0f MiB", published, settled, memory(b, pid, "VmHWM"))

	samples := c.churn(b, pid, time.Duration(seconds)*time.Second)
	await(b, "the replaced pods to be published", func() error { return c.published(b.Context()) })
	peak := slices.Max(samples)
	figure(b, "rss-mib", figures.Median(samples))
	figure(b, "rss-mib/churn-peak", peak)
	figure(b, "rss-mib/settled", settled)
	figure(b, "rss-mib/lifetime-peak", memory(b, pid, "VmHWM"))
}

// churn replaces pods, at the rate, for so long, and tells the process's
// resident memory of every second of it.
func (c crowd) churn(b *testing.B, pid int, long time.Duration) []float64 {
	b.Helper()
	began, replaced := time.Now(), make(chan error, 1)
	count := int(long.Seconds()) * churnRate
	go func() {
		group, ctx := errgroup.WithContext(b.Context())
		group.SetLimit(writers)
		for i := range count {
			time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / churnRate)))
			group.Go(func() error { return c.replace(ctx, i%c.pods) })
		}
		replaced <- group.Wait()
	}()
	var out []float64
	for {
		select {
		case err := <-replaced:
			must(b, err)
			figures.Say(b, "memory: %d pods were replaced in %.0fs", count, time.Since(began).Seconds())
			return append(out, memory(b, pid, "VmRSS"))
		case <-time.After(time.Second):
			out = append(out, memory(b, pid, "VmRSS"))
		}
	}
}

// memory is a line of /proc/PID/status, in MiB.
func memory(b *testing.B, pid int, name string) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(b, err)
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == name+":" {
			kib, err := strconv.Atoi(fields[1])
			must(b, err)
			return float64(kib) / 1024
		}
	}
	b.Fatalf("process %d has no %s", pid, name)
	return 0
}
