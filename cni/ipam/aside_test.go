// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestAnAddressThatAnotherHostHasIsPutAside(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	collector := &Collector{Manager: f.Manager, Clock: f.clock, Exists: func(l Lease) bool { return l.PodName != "" }}
	leases, err := f.Reserve(t.Context(), []Ask{ask("a", "data"), ask("a", "data", "net2")})
	if err != nil {
		t.Fatal(err)
	}
	taken := leases[0]
	expectEqual(t, "error", nil, f.PutAside(taken))
	expectEqual(t, "the interface's next address", []string{"10.20.0.11", "10.20.0.10"}, f.mustReserve(ask("a", "data"), ask("a", "data", "net2")))
	expectEqual(t, "again, as nothing is left of the lease", nil, f.PutAside(taken))
	f.mustRelease("sandbox-a")
	held := func() []v1alpha1.HeldAddresses { return f.Held(func(types.UID) bool { return true }) }
	expectEqual(t, "held after DEL", []v1alpha1.HeldAddresses{{Network: "data", Count: 1}}, held())
	expectEqual(t, "counted", map[string]int64{"data": 1}, f.foreign.all())
	expectEqual(t, "the block may be given back", false, f.Drain("data", taken.Block))

	f.crash(NamespaceExists)
	f.hold("data", dataUID, "10.20.0.8/29")
	collector.Manager = f.Manager
	expectEqual(t, "held after a crash", []v1alpha1.HeldAddresses{{Network: "data", Count: 1}}, held())
	f.clock.Step(asideFor - time.Second)
	collector.look(t.Context())
	collector.look(t.Context())
	var asks []Ask
	for i := range 6 {
		asks = append(asks, ask("b", "data", fmt.Sprintf("net%d", i)))
	}
	others := []string{"10.20.0.12", "10.20.0.13", "10.20.0.14", "10.20.0.15", "10.20.0.10", "10.20.0.11"}
	expectEqual(t, "what others get meanwhile", others, f.mustReserve(asks...))
	f.clock.Step(time.Second)
	collector.look(t.Context())
	expectEqual(t, "held when time is up", []v1alpha1.HeldAddresses(nil), held())
	expectEqual(t, "given out again", []string{taken.Address.String()}, f.mustReserve(ask("c", "data")))
}

func TestAFixedAddressIsNotPutAside(t *testing.T) {
	f := newFixture(t)
	leases, err := f.Reserve(t.Context(), []Ask{fixedAsk("db-0", "data", "10.20.0.60")})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.PutAside(leases[0]); err == nil {
		t.Error("the only address that the pod may have was put aside")
	}
}

func TestAnAddressIsPutAsideInTheJournalFirst(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	leases, err := f.Reserve(t.Context(), []Ask{ask("a", "data")})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.journal.file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.PutAside(leases[0]); err == nil {
		t.Error("an address was put aside without a record of it")
	}
	expectEqual(t, "leases", leases, f.Leases())
}

func TestAnAddressThatIsPutAsideKeepsNoNetwork(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock("10.20.0.16/29", thisNode, thisNodeUID))...)
	f.run()
	leases, err := f.Reserve(t.Context(), []Ask{ask("a", "data")})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.PutAside(leases[0]); err != nil {
		t.Fatal(err)
	}
	f.mustRelease("sandbox-a")
	f.run()
	expectEqual(t, "leases while the Network stays", 1, len(f.Leases()))
	f.deleteInAPI(dataNetwork())
	f.run()
	expectEqual(t, "leases when it goes", 0, len(f.Leases()))
}
