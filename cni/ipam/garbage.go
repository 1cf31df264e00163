// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// Defaults of the Collector.
const (
	DefaultCollectEvery = 30 * time.Second
	DefaultCollectGrace = time.Minute
)

// NamespaceExists tells whether the lease's network namespace is there, by its
// path. Without a path there never was an interface that has the address: one
// is made inside the namespace that the path leads to. What else cannot be told counts as there: freeing an address that a pod
// uses is far worse than holding one that nobody does. That includes a missing
// parent folder: then it is our view of the host that lacks something.
func NamespaceExists(lease Lease) bool {
	if lease.NetNS == "" {
		return lease.aside()
	}
	if _, err := os.Lstat(lease.NetNS); !errors.Is(err, fs.ErrNotExist) {
		return true
	}
	_, err := os.Stat(filepath.Dir(lease.NetNS))
	return err != nil
}

// Collector frees the leases of namespaces that are gone: containerd never
// calls the CNI command GC, and a DEL can get lost with its node's runtime.
type Collector struct {
	// Manager whose leases are looked at.
	Manager *Manager
	// Exists tells whether a lease's namespace is there; NamespaceExists if nil.
	Exists func(Lease) bool
	// Freed, if set, is told of every lease that was freed.
	Freed func(ctx context.Context, lease Lease)
	// Every is the time between two looks; DefaultCollectEvery if 0.
	Every time.Duration
	// Grace spares young leases, whose ADD may be under way; DefaultCollectGrace if 0.
	Grace time.Duration
	// Clock is the real one if nil.
	Clock clock.WithTicker

	suspects map[ownerKey]Lease // gone at the last look
}

// Start looks every while until ctx ends. It waits for Replay. It never
// returns an error.
func (c *Collector) Start(ctx context.Context) error {
	every, ticking := c.Every, c.Clock
	if every == 0 {
		every = DefaultCollectEvery
	}
	if ticking == nil {
		ticking = clock.RealClock{}
	}
	ticker := ticking.NewTicker(every)
	defer ticker.Stop()
	select {
	case <-c.Manager.Ready():
	case <-ctx.Done():
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
			c.look(ctx)
		}
	}
}

// look frees what was gone at the last look and still is.
func (c *Collector) look(ctx context.Context) {
	exists, grace, now := c.Exists, c.Grace, c.Manager.clock.Now()
	if exists == nil {
		exists = NamespaceExists
	}
	if grace == 0 {
		grace = DefaultCollectGrace
	}
	before := c.suspects
	c.suspects = map[ownerKey]Lease{}
	condemned := map[ownerKey]Lease{}
	for _, lease := range c.Manager.Leases() {
		if now.Sub(lease.Since) < grace || lease.aside() || exists(lease) {
			continue
		}
		if old, ok := before[lease.key()]; ok && sameLease(&old, &lease) {
			condemned[lease.key()] = lease
			continue
		}
		c.suspects[lease.key()] = lease
	}
	c.free(ctx, condemned)
	c.Manager.endAside(ctx)
	c.Manager.tidy()
}

func (c *Collector) free(ctx context.Context, condemned map[ownerKey]Lease) {
	if len(condemned) == 0 {
		return
	}
	logger := klog.FromContext(ctx)
	freed, err := c.Manager.release(func(lease *Lease) bool {
		old, ok := condemned[lease.key()]
		return ok && sameLease(&old, lease)
	})
	if err != nil {
		logger.Error(err, "Addresses of namespaces that are gone stay in use until the next look")
		return
	}
	for _, lease := range freed {
		c.Manager.garbage.add(lease.Network)
		logger.Info("Freed the address of a namespace that is gone", "network", lease.Network, "address", lease.Address,
			"pod", klog.KRef(lease.PodNamespace, lease.PodName), "containerID", lease.ContainerID, "netns", lease.NetNS)
		if c.Freed != nil {
			c.Freed(ctx, lease)
		}
	}
}

// sameLease tells a lease from a later one of the same interface.
func sameLease(a, b *Lease) bool {
	return a.key() == b.key() && a.addr() == b.addr() && a.Since.Equal(b.Since)
}

// tidy takes what is over out of the journal.
func (m *Manager) tidy() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.compactLocked(true)
}
