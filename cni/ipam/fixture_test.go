// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/types"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	managementUID types.UID = "uid-management"
	dataUID       types.UID = "uid-data"
)

// compareAddresses has cmp compare addresses by value.
var compareAddresses = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// fixture is a Manager with the two networks of the examples, each a /26 in
// blocks of 8.
type fixture struct {
	*Manager
	t       testing.TB
	clock   *testingclock.FakeClock
	path    string
	plans   map[string]*addressing.Plan
	subnets map[string]string
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{
		t:       t,
		clock:   testingclock.NewFakeClock(time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)),
		path:    filepath.Join(t.TempDir(), "addresses.journal"),
		plans:   map[string]*addressing.Plan{},
		subnets: map[string]string{"management": "10.10.0.0/26", "data": "10.20.0.0/26"},
	}
	for name, subnet := range f.subnets {
		plan, err := addressing.NewPlan(name, &v1alpha1.NetworkSpec{Subnet: v1alpha1.CIDR(subnet), BlockSize: 8})
		if err != nil {
			t.Fatal(err)
		}
		f.plans[name] = plan
	}
	f.start(func(Lease) bool { return true })
	return f
}

// start makes a new Manager over the fixture's journal.
func (f *fixture) start(live func(Lease) bool) {
	f.t.Helper()
	f.Manager = New(Config{JournalPath: f.path, Wait: 50 * time.Millisecond, Clock: f.clock})
	if err := f.Replay(live); err != nil {
		f.t.Fatal(err)
	}
	manager := f.Manager
	f.t.Cleanup(func() { _ = manager.Close() })
}

// crash ends the Manager as a SIGKILL does, and starts another.
func (f *fixture) crash(live func(Lease) bool) {
	f.t.Helper()
	if err := f.Close(); err != nil {
		f.t.Fatal(err)
	}
	f.start(live)
}

// hold gives the node these blocks of a network and no others.
func (f *fixture) hold(network string, uid types.UID, prefixes ...string) {
	var blocks []Block
	for _, prefix := range prefixes {
		closed := strings.HasPrefix(prefix, "-")
		prefix = strings.TrimPrefix(prefix, "-")
		blocks = append(blocks, Block{Prefix: netip.MustParsePrefix(prefix), UID: types.UID("uid-" + prefix), Closed: closed})
	}
	f.SetBlocks(network, uid, f.plans[network], blocks)
}

// ask is for the interface net1 of a pod's container, or for ifname.
func ask(pod, network string, ifname ...string) Ask {
	name := "net1"
	if len(ifname) > 0 {
		name = ifname[0]
	}
	return Ask{Network: network, Owner: Owner{PodUID: "uid-" + pod, PodNamespace: "default", PodName: pod, ContainerID: "sandbox-" + pod, IfName: name, NetNS: "/run/netns/" + pod}}
}

// reserve returns the addresses as text.
func (f *fixture) reserve(asks ...Ask) ([]string, error) {
	leases, err := f.Reserve(f.t.Context(), asks)
	return addresses(leases), err
}

func (f *fixture) mustReserve(asks ...Ask) []string {
	f.t.Helper()
	got, err := f.reserve(asks...)
	if err != nil {
		f.t.Fatal(err)
	}
	return got
}

func (f *fixture) mustRelease(containerID string, ifnames ...string) {
	f.t.Helper()
	if err := f.Release(f.t.Context(), containerID, ifnames...); err != nil {
		f.t.Fatal(err)
	}
}

func addresses(leases []Lease) []string {
	var out []string
	for i := range leases {
		out = append(out, leases[i].Address.String())
	}
	return out
}

func expectEqual(t testing.TB, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got, compareAddresses, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
