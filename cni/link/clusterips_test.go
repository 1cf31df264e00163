// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// kernelSets are the sets of a table as a transaction leaves them.
type kernelSets map[string]map[string]string

// apply does what the kernel does with elements; a removal of what is not there,
// or an addition of what is there with another value, fails.
func (k kernelSets) apply(name string, e elements) error {
	if k[name] == nil {
		k[name] = map[string]string{}
	}
	text := func(e nftables.SetElement) string {
		if e.VerdictData != nil {
			return e.VerdictData.Chain
		}
		return string(e.Val)
	}
	for _, gone := range e.gone {
		if _, ok := k[name][string(gone.Key)]; !ok {
			return fmt.Errorf("%s: removing %x, which is not there", name, gone.Key)
		}
		delete(k[name], string(gone.Key))
	}
	for _, added := range e.added {
		if _, ok := k[name][string(added.Key)]; ok {
			return fmt.Errorf("%s: adding %x, which is there", name, added.Key)
		}
		k[name][string(added.Key)] = text(added)
	}
	return nil
}

func (k kernelSets) change(had, want *ClusterIPs) error {
	for _, f := range ipFamilies() {
		c := compare(&f, had, want)
		for _, part := range []struct {
			name string
			elements
		}{{"frontends", c.frontends}, {"refused", c.refused}, {"slots", c.slots}, {"live", c.live}} {
			if err := k.apply(f.name+part.name, part.elements); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestChangesLeadToTheSameSets: a change from one table to any other leaves in
// the kernel what writing the other anew does.
func TestChangesLeadToTheSameSets(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	some := func() *ClusterIPs {
		out := &ClusterIPs{Balances: map[Frontend]Balance{}}
		for range random.IntN(6) {
			front := Frontend{netip.AddrFrom4([4]byte{10, 96, 0, byte(random.IntN(3))}), unix.IPPROTO_TCP, uint16(80 + random.IntN(2))}
			backend := netip.AddrFrom4([4]byte{10, 1, 0, 0})
			if random.IntN(2) == 0 {
				front.Address, backend = netip.MustParseAddr("fd00:96::1"), netip.MustParseAddr("fd00:1::")
			}
			balance := Balance{Sticky: time.Duration(random.IntN(3)) * time.Second}
			for range random.IntN(5) {
				backend = backend.Next()
				if random.IntN(3) > 0 {
					balance.Backends = append(balance.Backends, netip.AddrPortFrom(backend, 80))
				}
			}
			random.Shuffle(len(balance.Backends), func(i, j int) {
				balance.Backends[i], balance.Backends[j] = balance.Backends[j], balance.Backends[i]
			})
			out.Balances[front] = balance
		}
		return out
	}
	had, sets := &ClusterIPs{}, kernelSets{}
	for range 5000 {
		want, anew := some(), kernelSets{}
		if err := sets.change(had, want); err != nil {
			t.Fatalf("from %v to %v: %v", had.Balances, want.Balances, err)
		}
		if err := anew.change(&ClusterIPs{}, want); err != nil {
			t.Fatalf("to %v: %v", want.Balances, err)
		}
		if diff := cmp.Diff(anew, sets); diff != "" {
			t.Fatalf("from %v to %v: %s", had.Balances, want.Balances, diff)
		}
		chains := map[string]bool{}
		for _, p := range pickers(want) {
			chains[p.name()] = true
		}
		for _, name := range []string{"ipv4frontends", "ipv6frontends"} {
			for _, chain := range anew[name] {
				if !chains[chain] {
					t.Fatalf("%v: an element names chain %s, which nobody makes", want.Balances, chain)
				}
			}
		}
		had = want
	}
}

func TestOneEndpointIsOneElement(t *testing.T) {
	front := Frontend{netip.MustParseAddr("10.96.0.1"), unix.IPPROTO_TCP, 80}
	balance := func(lasts ...byte) *ClusterIPs {
		var b Balance
		for _, last := range lasts {
			b.Backends = append(b.Backends, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, last}), 80))
		}
		return &ClusterIPs{Balances: map[Frontend]Balance{front: b}}
	}
	f := ipFamilies()[0]
	c := compare(&f, balance(1, 2, 3), balance(1, 4, 3))
	if len(c.slots.gone) != 1 || len(c.slots.added) != 1 || len(c.frontends.gone)+len(c.frontends.added) > 0 {
		t.Errorf("changes %+v", c)
	}
}

func TestFlowsOfWhichBackendsAreForgotten(t *testing.T) {
	udp := Frontend{netip.MustParseAddr("10.96.0.1"), unix.IPPROTO_UDP, 53}
	tcp := Frontend{netip.MustParseAddr("10.96.0.1"), unix.IPPROTO_TCP, 53}
	with := func(front Frontend, lasts ...byte) *ClusterIPs {
		var b Balance
		for _, last := range lasts {
			b.Backends = append(b.Backends, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, last}), 53))
		}
		return &ClusterIPs{Balances: map[Frontend]Balance{front: b}}
	}
	for name, test := range map[string]struct {
		had, want *ClusterIPs
		forgotten bool
	}{
		"it begins":                    {&ClusterIPs{}, with(udp, 1), true},
		"nobody knows what was":        {nil, with(udp, 1), true},
		"the first backend comes":      {with(udp), with(udp, 1), true},
		"another comes":                {with(udp, 1), with(udp, 1, 2), false},
		"one goes":                     {with(udp, 1, 2), with(udp, 2), true},
		"the last goes":                {with(udp, 1), with(udp), true},
		"the frontend goes":            {with(udp, 1), &ClusterIPs{}, true},
		"TCP ends by itself":           {with(tcp, 1), with(tcp, 2), false},
		"backends change their places": {with(udp, 1, 2), with(udp, 2, 1), false},
	} {
		t.Run(name, func(t *testing.T) {
			got := slices.Collect(maps.Keys(changedUDP(test.had, test.want)))
			if (len(got) > 0) != test.forgotten {
				t.Errorf("frontends %v", got)
			}
		})
	}
}
