// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// series are the names of the metrics that have a value for the network data.
func (f *claimFixture) series() []string {
	f.t.Helper()
	families, err := f.metrics.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	names := map[string]bool{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "network" && label.GetValue() == "data" {
					names[family.GetName()] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func TestMetricsAreKeptByNetworkAsLongAsThereIsOne(t *testing.T) {
	f := newClaimFixture(t, world()...)
	f.run()
	f.mustReserve(ask("a", "data"))
	f.mustReserve(ask("b", "data"))
	if err := f.PutAside(f.Leases()[1]); err != nil {
		t.Fatal(err)
	}
	f.clock.Step(2 * time.Minute)
	collector := &Collector{Manager: f.Manager, Exists: func(Lease) bool { return false }}
	collector.look(t.Context())
	collector.look(t.Context())
	expectEqual(t, "metrics", []string{
		"netplane_ipam_addresses", "netplane_ipam_claim_seconds", "netplane_ipam_claims_total", "netplane_ipam_conflicts",
		"netplane_ipam_foreign_addresses_total", "netplane_ipam_garbage_total",
	}, f.series())

	f.networkGone()
	for range 5 {
		collector.look(t.Context())
		f.run()
		f.clock.Step(10 * time.Minute)
	}
	expectEqual(t, "metrics of a Network that is gone", []string(nil), f.series())
}

// The time of a claim begins when the need for it does, not when the attempt that
// succeeds does, and that of the next block with the claim of the one before.
func TestClaimSecondsIsTheTimeFromTheNeedToTheClaim(t *testing.T) {
	f := newClaimFixture(t, world()...)
	f.onWrite = func(string) error { return errors.New("denied by policy") }
	if _, _, err := f.tryRun(); err == nil {
		t.Fatal("the claim did not fail")
	}
	f.clock.Step(3 * time.Second)
	f.rewind() // a pause, too
	f.run()
	f.clock.Step(DefaultRollbackPause)
	f.onWrite = func(string) error {
		f.clock.Step(time.Second) // each takes one
		return nil
	}
	f.create(pod("a", "data,data,data,data,data,data,data,data"))
	f.run()
	expectEqual(t, "blocks", 2, len(f.blocksInAPI()))
	count, sum := f.claimSeconds()
	expectEqual(t, "claims", uint64(2), count)
	expectEqual(t, "seconds", 3+60+1+1.0, sum)

	// While nothing is needed no time passes.
	f.clock.Step(time.Minute)
	f.create(pod("b", "data,data,data,data,data,data,data,data"))
	f.run()
	count, sum = f.claimSeconds()
	expectEqual(t, "claims", uint64(3), count)
	expectEqual(t, "seconds", 3+60+1+1+1.0, sum)
}

// claimSeconds is the histogram of the network data.
func (f *claimFixture) claimSeconds() (count uint64, sum float64) {
	f.t.Helper()
	families, err := f.metrics.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "netplane_ipam_claim_seconds" {
			h := family.GetMetric()[0].GetHistogram()
			return h.GetSampleCount(), h.GetSampleSum()
		}
	}
	return 0, 0
}

// networkGone deletes the network data, whatever holds it.
func (f *claimFixture) networkGone() {
	f.t.Helper()
	network := &v1alpha1.Network{}
	network.Name = "data"
	if err := f.api.Get(f.t.Context(), client.ObjectKeyFromObject(network), network); err != nil {
		f.t.Fatal(err)
	}
	network.Finalizers = nil
	if err := errors.Join(f.api.Update(f.t.Context(), network), f.api.Delete(f.t.Context(), network)); err != nil {
		f.t.Fatal(err)
	}
}

func TestEveryMetricIsDocumented(t *testing.T) {
	source, err := os.ReadFile("metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/user/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`"(netplane_[a-z_]+)"`).FindAllSubmatch(source, -1)
	if len(names) < 7 {
		t.Fatalf("found only %d metrics: the search is broken", len(names))
	}
	for _, name := range names {
		if !bytes.Contains(page, append([]byte("| `"), name[1]...)) {
			t.Errorf("%s has no row in docs/user/metrics.md", name[1])
		}
	}
}
