// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/wire"
)

// newProbingWorld is a world whose networks look for other hosts, of which
// there are these, all with one MAC. It notes the operations on links.
func newProbingWorld(t *testing.T, hosts ...string) (w *world, operations func() []string) {
	t.Helper()
	w = newFixedWorld(t)
	for _, n := range w.networks {
		n.Spec.ConflictDetection = v1alpha1.ConflictDetectionProbe
	}
	w.links.Hosts = map[netip.Addr]string{}
	for _, host := range hosts {
		w.links.Hosts[netip.MustParseAddr(host)] = "02:00:00:00:00:09"
	}
	var mu sync.Mutex
	var out []string
	w.links.FailOn = func(operation string) error {
		mu.Lock()
		defer mu.Unlock()
		out = append(out, operation)
		return nil
	}
	return w, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(out)
	}
}

func TestAddressesAreLookedForBeforeAnInterfaceIsMade(t *testing.T) {
	w, operations := newProbingWorld(t)
	if err := w.add(t.Context(), "c1", "data@eth1"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"bridge eth1", "probe np-eth1 10.20.0.2", "bridge eth1", "add eth1"}, operations()); diff != "" {
		t.Error(diff)
	}
	if len(w.events) > 0 {
		t.Errorf("events %v", w.events)
	}
}

func TestWithoutConflictDetectionNothingIsAsked(t *testing.T) {
	w, operations := newProbingWorld(t, "10.20.0.2")
	w.networks["data"].Spec.ConflictDetection = v1alpha1.ConflictDetectionNone
	if err := w.add(t.Context(), "c1", "data@eth1"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"bridge eth1", "add eth1"}, operations()); diff != "" {
		t.Error(diff)
	}
}

func TestAnInterfaceGetsAnotherAddressThanAHostHas(t *testing.T) {
	for name, taken := range map[string]string{"IPv4": "10.10.0.2", "IPv6": "fd00:10:10::a0a:2"} {
		t.Run(name, func(t *testing.T) {
			w, operations := newProbingWorld(t, taken)
			if err := w.add(t.Context(), "c1", "management@eth0,data@eth1"); err != nil {
				t.Fatal(err)
			}
			if got := w.links.String(); !strings.Contains(got, " 10.10.0.3/16 fd00:10:10::a0a:3/64 ") || !strings.Contains(got, " 10.20.0.2/16") {
				t.Errorf("links\n%s", got)
			}
			want := []string{`default/pod-c1 uid-c1: network "management": address ` + taken + ` is in use by a host outside the cluster, with MAC 02:00:00:00:00:09`}
			if diff := cmp.Diff(want, w.events); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{"aside/10.10.0.2", "c1/eth0", "c1/eth1"}, slices.Sorted(maps.Keys(w.leases))); diff != "" {
				t.Errorf("leases: %s", diff)
			}
			asked := 0
			for _, operation := range operations() {
				if operation == "probe np-eth1 10.20.0.2" {
					asked++
				}
			}
			if asked != 1 {
				t.Errorf("the other interface's address was asked for %d times", asked)
			}
		})
	}
}

func TestASubnetOfOthersFailsReadably(t *testing.T) {
	w, _ := newProbingWorld(t, "10.20.0.2", "10.20.0.3", "10.20.0.4", "10.20.0.5")
	err := w.add(t.Context(), "c1", "data")
	want := `network "data": address 10.20.0.5 is in use by a host outside the cluster, with MAC 02:00:00:00:00:09, as were the 3 tried before: ` +
		`give the subnet to the cluster alone, or name what others use in spec.excludeRanges`
	var known *wire.Error
	if !errors.As(err, &known) || known.Msg != want || known.Code != wire.CodeTryAgain {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if diff := cmp.Diff([]string{"aside/10.20.0.2", "aside/10.20.0.3", "aside/10.20.0.4", "aside/10.20.0.5"}, slices.Sorted(maps.Keys(w.leases))); diff != "" {
		t.Errorf("leases: %s", diff)
	}
}

func TestAFixedAddressThatAHostHasIsNotReplaced(t *testing.T) {
	w, _ := newProbingWorld(t, "10.20.254.5")
	w.claims = []*v1alpha1.IPClaim{claimFor("data", "net1", "10.20.254.5")}
	err := w.add(t.Context(), "c1", "- {name: data, sticky: true}")
	want := `network "data": address 10.20.254.5 is in use by a host outside the cluster, with MAC 02:00:00:00:00:09; it is fixed, so that the pod waits until that host gives it up`
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if len(w.leases) > 0 || len(w.events) != 1 {
		t.Errorf("leases %v, events %v", w.leases, w.events)
	}
}

func TestAProbeThatFailsGivesTheAddressesBack(t *testing.T) {
	w, _ := newProbingWorld(t)
	w.links.FailOn = func(operation string) error {
		if strings.HasPrefix(operation, "probe") {
			return unix.ENETDOWN
		}
		return nil
	}
	err := w.add(t.Context(), "c1", "data")
	if want := `network "data": looking for other hosts with address 10.20.0.2: network is down`; err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if len(w.leases) > 0 {
		t.Errorf("leases %v", w.leases)
	}
}
