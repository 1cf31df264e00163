// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ipam manages the addresses of one node. The Manager hands out the
// addresses of the node's IPBlocks to pods' interfaces, in memory and with a
// journal in tmpfs: no address costs a call to the API server. The Claimer
// claims IPBlocks ahead of need by creating them, and gives them back. The
// Collector frees the addresses of namespaces that are gone. The agent's CNI
// server is the only caller of Reserve and Release.
package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/netplane/netplane/api/addressing"
)

// DefaultWait is how long Reserve waits for a block.
const DefaultWait = 5 * time.Second

// ErrNotReplayed is returned before Replay has read the journal.
var ErrNotReplayed = errors.New("the node's addresses have not been read from the journal yet")

// Config says how a Manager works.
type Config struct {
	// JournalPath is the journal's file, in tmpfs.
	JournalPath string
	// Wait bounds how long Reserve waits for a block; 0 means DefaultWait.
	Wait time.Duration
	// Clock is the real one if nil.
	Clock clock.WithTicker
	// Logger is klog's own if it is the zero value.
	Logger klog.Logger
}

// Manager knows every address of the node's blocks. It is safe for concurrent use.
type Manager struct {
	path   string
	wait   time.Duration
	clock  clock.WithTicker
	logger klog.Logger

	ready   chan struct{} // closed by Replay
	garbage tally         // leases that the Collector ended
	foreign tally         // addresses that were put aside

	mu          sync.Mutex
	journal     *journal
	pools       map[string]*pool
	cooling     cooling
	byOwner     map[ownerKey]*Lease
	byContainer map[string][]*Lease // by container ID
	arrived     chan struct{}       // closed when addresses became free; nil if nobody waits
	watchers    []func(network string, waiting bool)
	hesitate    func() string // why no fixed address is given out now, or empty; nil for never
}

// New makes a Manager, which serves after Replay.
func New(cfg Config) *Manager {
	m := &Manager{
		path:        cfg.JournalPath,
		wait:        cfg.Wait,
		clock:       cfg.Clock,
		logger:      cfg.Logger,
		ready:       make(chan struct{}),
		pools:       map[string]*pool{},
		cooling:     cooling{},
		byOwner:     map[ownerKey]*Lease{},
		byContainer: map[string][]*Lease{},
	}
	if m.wait == 0 {
		m.wait = DefaultWait
	}
	if m.clock == nil {
		m.clock = clock.RealClock{}
	}
	if m.logger.GetSink() == nil {
		m.logger = klog.Background()
	}
	return m
}

// Subscribe has changed called with the Network's name after leases, or the
// number of addresses waited for, have changed; waiting tells that a pod waits.
// It must not block. Subscribe before Replay.
func (m *Manager) Subscribe(changed func(network string, waiting bool)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watchers = append(m.watchers, changed)
}

// setHesitation has why asked before a fixed address is given to an interface
// that does not have it yet. It must not call the Manager.
func (m *Manager) setHesitation(why func() string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hesitate = why
}

// Replay reads the journal, drops the leases that are not live, and opens the
// Manager. Leases are kept whether or not their block is known: the API server
// may be behind, the pods are there. It is called once, before serving.
func (m *Manager) Replay(live func(Lease) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.journal != nil {
		return errors.New("replaying the journal: it was replayed already")
	}
	j, state, err := openJournal(m.path)
	if err != nil {
		return err
	}
	now := m.clock.Now().UTC().Round(0)
	var kept, dead []Lease
	for _, lease := range state.leases() {
		if live(lease) {
			kept = append(kept, lease)
		} else {
			dead = append(dead, lease)
		}
	}
	maps.Copy(m.cooling, state.cooling)
	m.cooling.add(dead, now)
	m.cooling.forget(now)
	if err := j.rewrite(kept, m.cooling.list()); err != nil {
		// Without room the agent still has to serve DEL and CHECK: the leases of
		// before say the same as long as nothing else is freed or given out.
		if other := j.resume(); other != nil {
			return errors.Join(err, other, j.close())
		}
		m.logger.Error(err, "The address journal stays as it was; ADD and DEL fail until it can be written", "path", m.path)
	}
	if state.damaged > 0 {
		m.logger.Error(nil, "The address journal had unreadable lines; addresses of living pods may be missing from it", "path", m.path, "lines", state.damaged)
	}
	m.journal = j
	for i := range kept {
		m.enter(&kept[i])
	}
	close(m.ready)
	return nil
}

// Ready is closed when the Manager serves.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Close releases the journal. The Manager must not be used afterwards.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.journal == nil {
		return nil
	}
	return m.journal.close()
}

// Reserve gives every ask an address, or none of them. An interface that has
// its address already keeps it. Where addresses lack it waits for a block, as
// long as ctx and Config.Wait allow. Every error may go away: the caller tries
// again.
func (m *Manager) Reserve(ctx context.Context, asks []Ask) ([]Lease, error) {
	if err := checkAsks(asks); err != nil {
		return nil, err
	}
	leases, lack, arrived, err := m.try(asks)
	if err != nil || len(lack) == 0 {
		return leases, err
	}
	return m.await(ctx, asks, lack, arrived)
}

// Available says why Reserve would have to wait, or fail, now; nil if it would not.
// Nothing is reserved: another pod may be faster.
func (m *Manager) Available(asks []Ask) error {
	if err := checkAsks(asks); err != nil {
		return err
	}
	m.mu.Lock()
	if m.journal == nil {
		m.mu.Unlock()
		return ErrNotReplayed
	}
	_, fresh, lack, err := m.pickAll(asks)
	for _, p := range slices.Backward(fresh) {
		p.undo()
	}
	m.mu.Unlock()
	if err == nil && len(lack) > 0 {
		err = m.explain(lack[0])
	}
	return err
}

// await tries again whenever addresses came, until time is up.
func (m *Manager) await(ctx context.Context, asks []Ask, lack []string, arrived <-chan struct{}) (leases []Lease, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.wait, errWaited)
	defer cancel()
	var waits *wait
	defer func() { m.endWait(waits) }()
	var lacked []string
	for {
		if !slices.Equal(lack, lacked) {
			m.endWait(waits)
			waits, lacked = m.beginWait(asks, lack), lack
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), errWaited) {
				return nil, fmt.Errorf("waiting for an address of network %q: %w", lack[0], ctx.Err())
			}
			return nil, m.explain(lack[0])
		}
		leases, lack, arrived, err = m.try(asks)
		if err != nil || len(lack) == 0 {
			return leases, err
		}
	}
}

// errWaited tells the own time limit from the caller's.
var errWaited = errors.New("no block came in time")

func checkAsks(asks []Ask) error {
	for i := range asks {
		ask := &asks[i]
		if !ask.complete() || ask.Network == "" {
			return fmt.Errorf("reserving an address of network %q: container ID, interface and network are required", ask.Network)
		}
		// A pod has a few interfaces: no map is made for them.
		if slices.ContainsFunc(asks[:i], func(earlier Ask) bool { return earlier.key() == ask.key() }) {
			return fmt.Errorf("reserving an address of network %q: interface %s is asked for twice", ask.Network, ask.IfName)
		}
		if ask.Fixed.IsValid() && slices.ContainsFunc(asks[:i], func(earlier Ask) bool { return earlier.Network == ask.Network && earlier.Fixed == ask.Fixed }) {
			return fmt.Errorf("reserving address %s of network %q: two interfaces ask for it", ask.Fixed, ask.Network)
		}
	}
	return nil
}

// try reserves all asks, or says which networks lack addresses and what to wait for.
func (m *Manager) try(asks []Ask) (leases []Lease, lack []string, arrived <-chan struct{}, err error) {
	m.mu.Lock()
	if m.journal == nil {
		m.mu.Unlock()
		return nil, nil, nil, ErrNotReplayed
	}
	leases, fresh, lack, err := m.pickAll(asks)
	if err == nil && len(lack) == 0 && len(fresh) > 0 {
		entry := leases
		if len(fresh) < len(leases) {
			entry = values(fresh)
		}
		if err = m.journal.append(record{Op: opLease, Leases: entry}); err != nil {
			err = fmt.Errorf("reserving an address of network %q: %w", fresh[0].lease.Network, err)
		}
	}
	if err != nil || len(lack) > 0 {
		for _, p := range slices.Backward(fresh) {
			p.undo()
		}
		if m.arrived == nil {
			m.arrived = make(chan struct{})
		}
		arrived = m.arrived
		m.mu.Unlock()
		return nil, lack, arrived, err
	}
	for _, p := range fresh {
		m.enter(p.lease)
	}
	m.mu.Unlock()
	m.notifyOf(leases)
	return leases, nil, nil, nil
}

// enter makes a lease known; it is in the journal already.
func (m *Manager) enter(lease *Lease) {
	m.byOwner[lease.key()] = lease
	m.byContainer[lease.ContainerID] = append(m.byContainer[lease.ContainerID], lease)
	m.pool(lease.Network).attach(lease)
}

func (m *Manager) pool(network string) *pool {
	p := m.pools[network]
	if p == nil {
		p = newPool(network, m.cooling)
		m.pools[network] = p
	}
	return p
}

// Release ends the leases of a container's interfaces, of all of them if none
// is named. What is gone already is no error; an error means that nothing
// has changed.
func (m *Manager) Release(_ context.Context, containerID string, ifnames ...string) error {
	m.mu.Lock()
	var gone []Lease
	for _, lease := range m.byContainer[containerID] {
		if len(ifnames) == 0 || slices.Contains(ifnames, lease.IfName) {
			gone = append(gone, *lease)
		}
	}
	err := m.endLocked(gone)
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("releasing the addresses of container %s: %w", containerID, err)
	}
	m.notifyOf(gone)
	return nil
}

// release ends every lease that is meant and returns them.
func (m *Manager) release(meant func(*Lease) bool) ([]Lease, error) {
	m.mu.Lock()
	var gone []Lease
	for _, lease := range m.byOwner {
		if meant(lease) {
			gone = append(gone, *lease)
		}
	}
	err := m.endLocked(gone)
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	m.notifyOf(gone)
	return gone, nil
}

// endLocked ends leases: first in the journal, then in memory.
func (m *Manager) endLocked(gone []Lease) error {
	if m.journal == nil {
		return ErrNotReplayed
	}
	if len(gone) == 0 {
		return nil
	}
	sortLeases(gone)
	now := m.clock.Now().UTC().Round(0)
	if err := m.journal.append(record{Op: opFree, Leases: gone, At: now}); err != nil {
		return err
	}
	m.cooling.add(gone, now)
	for i := range gone {
		m.leave(&gone[i])
		p := m.pools[gone[i].Network]
		p.detach(&gone[i], now)
		m.forgetIfEmpty(p)
	}
	m.compactLocked(m.journal.garbage(len(m.byOwner) + len(m.cooling)))
	m.wakeLocked()
	return nil
}

// leave takes a lease out of the indexes.
func (m *Manager) leave(lease *Lease) {
	delete(m.byOwner, lease.key())
	rest := slices.DeleteFunc(m.byContainer[lease.ContainerID], func(l *Lease) bool { return l.IfName == lease.IfName })
	if len(rest) == 0 {
		delete(m.byContainer, lease.ContainerID)
	} else {
		m.byContainer[lease.ContainerID] = rest
	}
}

// compactLocked rewrites the journal. A failure leaves the longer journal,
// which says the same, and the next release tries again.
func (m *Manager) compactLocked(due bool) {
	if !due {
		return
	}
	m.cooling.forget(m.clock.Now())
	if m.journal.frees == 0 {
		return
	}
	if err := m.journal.rewrite(m.leasesLocked(), m.cooling.list()); err != nil {
		m.logger.Error(err, "The address journal stays as long as it is", "path", m.path)
	}
}

// wakeLocked has every waiting Reserve try again.
func (m *Manager) wakeLocked() {
	if m.arrived != nil {
		close(m.arrived)
		m.arrived = nil
	}
}

func (m *Manager) forgetIfEmpty(p *pool) {
	if p.empty() {
		delete(m.pools, p.network)
	}
}

// notifyOf tells of the networks of leases, of each once.
func (m *Manager) notifyOf(leases []Lease) {
	for i := range leases {
		network := leases[i].Network
		if !slices.ContainsFunc(leases[:i], func(l Lease) bool { return l.Network == network }) {
			m.notify(network, false)
		}
	}
}

func (m *Manager) notify(network string, waiting bool) {
	m.mu.Lock()
	watchers := m.watchers
	m.mu.Unlock()
	for _, changed := range watchers {
		changed(network, waiting)
	}
}

// Leases is a snapshot of all leases, by network and address.
func (m *Manager) Leases() []Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leasesLocked()
}

func (m *Manager) leasesLocked() []Lease {
	out := make([]Lease, 0, len(m.byOwner))
	for _, lease := range m.byOwner {
		out = append(out, *lease)
	}
	sortLeases(out)
	return out
}

// SetBlocks tells which blocks of a Network this node holds. A nil plan, of a
// Network that is gone, keeps the leases in them and hands out nothing. New
// free addresses wake the pods that wait for them. Pass the same plan as long
// as the Network's spec is the same.
func (m *Manager) SetBlocks(network string, uid types.UID, plan *addressing.Plan, blocks []Block) {
	m.mu.Lock()
	p := m.pool(network)
	changed := p.setBlocks(uid, plan, blocks, m.clock.Now().UTC().Round(0))
	m.forgetIfEmpty(p)
	m.wakeLocked()
	m.mu.Unlock()
	if changed {
		m.notify(network, false)
	}
}

// Drain closes a block without leases, for its deletion. It is false if the
// block is in use or closed already.
func (m *Manager) Drain(network string, prefix netip.Prefix) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pools[network]; p != nil {
		if b := p.blocks[prefix]; b != nil && b.leased == 0 && b.open() {
			b.drained = true
			return true
		}
	}
	return false
}

// Seal closes a block without leases for good, before the node lets it go. It
// is false if a pod has an address of it.
func (m *Manager) Seal(network string, prefix netip.Prefix) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pools[network]; p != nil {
		if b := p.blocks[prefix]; b != nil {
			b.sealed = b.leased == 0
			return b.sealed
		}
	}
	return true
}

// Undrain opens a block again that could not be deleted.
func (m *Manager) Undrain(network string, prefix netip.Prefix) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pools[network]; p != nil && p.blocks[prefix] != nil {
		p.blocks[prefix].drained = false
		m.wakeLocked()
	}
}
