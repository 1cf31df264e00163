// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// model is what a Manager ought to hold.
type model struct {
	*fixture
	random *rand.Rand
	leases map[ownerKey]Lease
	blocks map[string]bool // of "data": closed or not
	dead   map[string]bool // containers whose namespace is gone
}

// TestRandomLife walks through reservations, releases, blocks that come, close
// and go, and crashes that cut the journal's last line, and compares with the
// model after every step: no address twice, none lost.
func TestRandomLife(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			m := &model{fixture: newFixture(t), random: rand.New(rand.NewPCG(seed, 7)), leases: map[ownerKey]Lease{}, blocks: map[string]bool{}, dead: map[string]bool{}}
			m.wait = time.Microsecond
			for range 200 {
				m.clock.Step(time.Duration(m.random.IntN(30)) * time.Second)
				m.step()
				m.check()
				if t.Failed() {
					t.FailNow()
				}
			}
		})
	}
}

func (m *model) step() {
	switch pick := m.random.IntN(100); {
	case pick < 45:
		m.reserveSome()
	case pick < 75:
		m.releaseSome()
	case pick < 92:
		m.changeBlocks()
	default:
		m.crashSomehow()
	}
}

func (m *model) container() string { return fmt.Sprint("p", m.random.IntN(20)) }

func (m *model) reserveSome() {
	pod := m.container()
	var asks []Ask
	for i := range 1 + m.random.IntN(3) {
		asks = append(asks, ask(pod, "data", fmt.Sprint("net", i)))
	}
	leases, err := m.Reserve(m.t.Context(), asks)
	if err != nil {
		return // check finds what a failure leaves behind
	}
	delete(m.dead, "sandbox-"+pod)
	for i, lease := range leases {
		if old, ok := m.leases[lease.key()]; ok && old.Address != lease.Address {
			m.t.Errorf("%s moved from %s to %s", lease.IfName, old.Address, lease.Address)
		}
		if lease.Owner != asks[i].Owner {
			m.t.Errorf("asked for %+v, got a lease of %+v", asks[i].Owner, lease.Owner)
		}
		m.leases[lease.key()] = lease
	}
}

func (m *model) releaseSome() {
	container := "sandbox-" + m.container()
	var ifnames []string
	if m.random.IntN(2) == 0 {
		ifnames = []string{"net0"}
	}
	m.mustRelease(container, ifnames...)
	maps.DeleteFunc(m.leases, func(key ownerKey, _ Lease) bool {
		return key.containerID == container && (len(ifnames) == 0 || key.ifname == "net0")
	})
}

func (m *model) changeBlocks() {
	prefix := fmt.Sprintf("10.20.0.%d/29", 8*m.random.IntN(5))
	closed, held := m.blocks[prefix]
	switch {
	case !held:
		m.blocks[prefix] = false
	case !closed:
		m.blocks[prefix] = true
	default:
		delete(m.blocks, prefix) // also with leases in it, as an admin's force does
	}
	m.tell()
}

func (m *model) tell() {
	var blocks []Block
	for prefix, closed := range m.blocks {
		blocks = append(blocks, Block{Prefix: netip.MustParsePrefix(prefix), UID: types.UID("uid-" + prefix), Closed: closed})
	}
	m.SetBlocks("data", dataUID, m.plans["data"], blocks)
}

// crashSomehow starts anew; one time in two the last record was cut, which
// means that its Reserve or Release never answered.
func (m *model) crashSomehow() {
	if m.random.IntN(2) == 0 {
		m.mustReserveOnly("cut")
		data, err := os.ReadFile(m.path)
		if err != nil {
			m.t.Fatal(err)
		}
		if last := bytes.LastIndexByte(bytes.TrimSuffix(data, []byte{'\n'}), '\n') + 1; bytes.Contains(data[last:], []byte("sandbox-cut")) {
			data = data[:last+m.random.IntN(len(data)-last)]
		}
		if err := os.WriteFile(m.path, data, 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	gone := "sandbox-" + m.container()
	m.crash(func(l Lease) bool { return l.ContainerID != gone && l.ContainerID != "sandbox-cut" })
	m.wait = time.Microsecond
	maps.DeleteFunc(m.leases, func(key ownerKey, _ Lease) bool { return key.containerID == gone })
	if m.random.IntN(2) == 0 {
		m.tell()
	}
}

func (m *model) mustReserveOnly(pod string) { _, _ = m.reserve(ask(pod, "data")) }

// check compares all that is visible.
func (m *model) check() {
	m.t.Helper()
	want := slices.Collect(maps.Values(m.leases))
	sortLeases(want)
	expectEqual(m.t, "leases", want, m.Leases())
	used := map[netip.Addr]bool{}
	for _, lease := range m.Leases() {
		if used[lease.Address] {
			m.t.Errorf("%s is in use twice", lease.Address)
		}
		used[lease.Address] = true
	}
	for _, b := range m.Usage("data").Blocks {
		leased := 0
		for address := range used {
			if b.Prefix.Contains(address) {
				leased++
			}
		}
		if b.Leased != leased || b.Leased+b.Free != m.plans["data"].Capacity(b.Prefix) {
			m.t.Errorf("block %s: %d leased (want %d), %d free of %d", b.Prefix, b.Leased, leased, b.Free, m.plans["data"].Capacity(b.Prefix))
		}
	}
}

// TestConcurrentLife is for the race detector: many pods at once, with blocks
// that close and come back. At the end nothing is in use and nothing is lost.
func TestConcurrentLife(t *testing.T) {
	f := newFixture(t)
	f.wait = 20 * time.Second
	f.hold("data", dataUID, "10.20.0.8/29", "10.20.0.16/29")
	var mu sync.Mutex
	inUse := map[string]string{}
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for round := range 40 {
				pod := fmt.Sprintf("w%dr%d", worker, round)
				leases, err := f.Reserve(t.Context(), []Ask{ask(pod, "data", "net1"), ask(pod, "data", "net2")})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, address := range addresses(leases) {
					if other := inUse[address]; other != "" {
						t.Errorf("%s has %s, which %s has", pod, address, other)
					}
					inUse[address] = pod
				}
				mu.Unlock()
				mu.Lock()
				for _, address := range addresses(leases) {
					delete(inUse, address)
				}
				mu.Unlock()
				if err := f.Release(t.Context(), "sandbox-"+pod); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			f.hold("data", dataUID, "-10.20.0.8/29", "10.20.0.16/29")
			f.hold("data", dataUID, "10.20.0.8/29", "10.20.0.16/29")
			f.Held(func(types.UID) bool { return false })
			f.tidy()
		}
	})
	wg.Wait()
	expectEqual(t, "leases", []Lease(nil), f.Leases())
	for _, b := range f.Usage("data").Blocks {
		expectEqual(t, "free addresses of "+b.Prefix.String(), 7, b.Free)
	}
}

func BenchmarkReserveRelease(b *testing.B) {
	f := newFixture(b)
	f.hold("data", dataUID, "10.20.0.8/29")
	for b.Loop() {
		f.mustReserve(ask("a", "data", "net1"), ask("a", "data", "net2"))
		f.mustRelease("sandbox-a")
	}
}
