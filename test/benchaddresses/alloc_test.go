// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchaddresses

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/test/figures"
	"github.com/netplane/netplane/test/fleet"
)

// A full node: kubelet's usual limit is 110 pods, large nodes have 250.
const (
	fullNodePods     = 250
	fullNodeNetworks = 4
)

// ipamUnderTest is what both ways of keeping addresses offer.
type ipamUnderTest interface {
	reserve(network, container string) error
	release(network, container string) error
}

// BenchmarkAlloc reserves and releases addresses on a node that is full but
// for one pod, in memory with a journal, and in the same rounds the way of
// host-local: a file per address.
func BenchmarkAlloc(b *testing.B) {
	ops := figures.Setting(b, "ALLOCS", 20000)
	dir := tmpfs(b)
	journal, files := newJournalled(b, dir), newFilePerAddress(dir)
	for _, way := range []ipamUnderTest{journal, files} {
		for pod := range fullNodePods - 1 {
			for network := range fullNodeNetworks {
				fleet.Must(b, way.reserve(networkName(network), container(pod, network)))
			}
		}
	}
	figures.Say(b, "addresses: %d leases, journal and files in %s (tmpfs)", (fullNodePods-1)*fullNodeNetworks, dir)
	const rounds = 5
	var ours, theirs churn
	var ratios []float64
	for range rounds {
		fast := ours.run(b, journal, ops/rounds)
		ratios = append(ratios, fast/theirs.run(b, files, max(1, ops/rounds/20)))
	}
	figures.Say(b, "addresses: journal reserve p50 %s p99 %s, release p50 %s p99 %s", figures.Percentile(ours.reserves, 50), figures.Percentile(ours.reserves, 99), figures.Percentile(ours.releases, 50), figures.Percentile(ours.releases, 99))
	figures.Say(b, "addresses: files   reserve p50 %s p99 %s, release p50 %s p99 %s", figures.Percentile(theirs.reserves, 50), figures.Percentile(theirs.reserves, 99), figures.Percentile(theirs.releases, 50), figures.Percentile(theirs.releases, 99))
	figure(b, "alloc-per-s", ours.perSecond())
	figure(b, "alloc-p99-us", float64(figures.Percentile(ours.reserves, 99).Nanoseconds())/1e3)
	figure(b, "alloc-release-p99-us", float64(figures.Percentile(ours.releases, 99).Nanoseconds())/1e3)
	figure(b, "alloc-ratio-to-file-per-address", figures.Median(ratios))
}

// churn is the durations of reservations, each followed by its release.
type churn struct {
	reserves, releases []time.Duration
	total              time.Duration
}

// run returns the addresses per second of this round.
func (c *churn) run(b *testing.B, way ipamUnderTest, ops int) float64 {
	b.Helper()
	began := time.Now()
	for i := range ops {
		network, id := networkName(i%fullNodeNetworks), fmt.Sprintf("%s-%d", container(fullNodePods, i%fullNodeNetworks), i)
		start := time.Now()
		fleet.Must(b, way.reserve(network, id))
		middle := time.Now()
		fleet.Must(b, way.release(network, id))
		c.reserves = append(c.reserves, middle.Sub(start))
		c.releases = append(c.releases, time.Since(middle))
	}
	took := time.Since(began)
	c.total += took
	return float64(ops) / took.Seconds()
}

// perSecond counts addresses that were reserved and released.
func (c *churn) perSecond() float64 { return float64(len(c.reserves)) / c.total.Seconds() }

func networkName(i int) string { return fmt.Sprintf("net%d", i) }

// container is an ID of a length that runtimes use.
func container(pod, network int) string { return fmt.Sprintf("%064d", pod*fullNodeNetworks+network) }

// tmpfs makes a folder in a tmpfs, where the agent's journal is.
func tmpfs(b *testing.B) string {
	b.Helper()
	for _, parent := range []string{"/run", "/dev/shm"} {
		var stat unix.Statfs_t
		if unix.Statfs(parent, &stat) != nil || stat.Type != unix.TMPFS_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(parent, "netplane-bench")
		fleet.Must(b, err)
		b.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	b.Fatal("neither /run nor /dev/shm is a tmpfs: the figures would be the disk's")
	return ""
}

// journalled is the agent's own way.
type journalled struct {
	*ipam.Manager
	ctx context.Context
}

func newJournalled(b *testing.B, dir string) journalled {
	b.Helper()
	manager := ipam.New(ipam.Config{JournalPath: filepath.Join(dir, "addresses.journal"), Wait: time.Millisecond})
	fleet.Must(b, manager.Replay(func(ipam.Lease) bool { return true }))
	b.Cleanup(func() { _ = manager.Close() })
	for i := range fullNodeNetworks {
		plan, err := addressing.NewPlan(networkName(i), &v1alpha1.NetworkSpec{Subnet: v1alpha1.CIDR(fmt.Sprintf("10.%d.0.0/16", i))})
		fleet.Must(b, err)
		var blocks []ipam.Block
		capacity := 0
		for prefix := range plan.Candidates("worker") {
			blocks = append(blocks, ipam.Block{Prefix: prefix, UID: types.UID(prefix.String())})
			if capacity += plan.Capacity(prefix); capacity >= fullNodePods+8 {
				break
			}
		}
		manager.SetBlocks(networkName(i), types.UID(networkName(i)), plan, blocks)
	}
	return journalled{manager, b.Context()}
}

func (j journalled) reserve(network, container string) error {
	_, err := j.Reserve(j.ctx, []ipam.Ask{{Network: network, Owner: ipam.Owner{
		PodUID: "3f9d0a2e-7c1b-4d55-9a58-" + container[:12], PodNamespace: "default", PodName: "web-7c9d5b8f6-x2x9q",
		ContainerID: container, IfName: "net1", NetNS: "/var/run/netns/cni-3f9d0a2e-7c1b-4d55-9a58-000000000000",
	}}})
	return err
}

func (j journalled) release(_, container string) error { return j.Release(j.ctx, container) }

// filePerAddress keeps a folder per network with a file per address that holds
// its owner. A lock is held over every operation; an owner is looked for by
// reading all files.
type filePerAddress struct{ dir string }

func newFilePerAddress(dir string) filePerAddress {
	return filePerAddress{filepath.Join(dir, "networks")}
}

func (f filePerAddress) locked(network string, do func(folder string) error) error {
	folder := filepath.Join(f.dir, network)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	lock, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	return do(folder)
}

// find returns the file of an owner, or nothing.
func (f filePerAddress) find(folder, owner string) (string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return "", err
	}
	for _, entry := range entries {
		path := filepath.Join(folder, entry.Name())
		if text, err := os.ReadFile(path); err != nil {
			return "", err
		} else if string(text) == owner {
			return path, nil
		}
	}
	return "", nil
}

func (f filePerAddress) reserve(network, container string) error {
	return f.locked(network, func(folder string) error {
		owner := container + "\r\nnet1"
		if found, err := f.find(folder, owner); err != nil || found != "" {
			return err
		}
		last := filepath.Join(folder, "last_reserved_ip.0")
		first := netip.MustParseAddr("10.0.0.2")
		if text, err := os.ReadFile(last); err == nil {
			first = netip.MustParseAddr(string(text)).Next()
		}
		for address := first; ; address = address.Next() {
			file, err := os.OpenFile(filepath.Join(folder, address.String()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
			if os.IsExist(err) {
				continue
			}
			if err != nil {
				return err
			}
			if _, err := file.WriteString(owner); err != nil {
				return err
			}
			if err := file.Close(); err != nil {
				return err
			}
			return os.WriteFile(last, []byte(address.String()), 0o644)
		}
	})
}

func (f filePerAddress) release(network, container string) error {
	return f.locked(network, func(folder string) error {
		found, err := f.find(folder, container+"\r\nnet1")
		if err != nil || found == "" {
			return err
		}
		return os.Remove(found)
	})
}
