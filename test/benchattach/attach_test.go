// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchattach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/test/figures"
	"github.com/netplane/netplane/test/isolated"
)

// shape is what a pod has: interfaces eth0, net1 and up.
type shape struct {
	interfaces int
	dual       bool // IPv6 beside IPv4
}

// String is the shape's name among the figures, such as "4if-dual".
func (s shape) String() string {
	family := "v4"
	if s.dual {
		family = "dual"
	}
	return fmt.Sprintf("%dif-%s", s.interfaces, family)
}

// ifName names a pod's interfaces.
func ifName(i int) string {
	if i == 0 {
		return "eth0"
	}
	return fmt.Sprintf("net%d", i)
}

// pod is a sandbox whose runtime has made its namespace.
type pod struct {
	id, netns string
}

// way is one way to give pods of one shape their interfaces. eth0 is a veth
// whose other end is a port of a bridge and has the default routes, the others
// are macvlans. It is safe for concurrent use.
type way interface {
	add(p *pod) error
	del(p *pod) error
}

// cell is one figure's place: a way, a shape and how many pods at once.
type cell struct {
	way    string
	shape  shape
	atOnce int
}

// times are what was measured in a cell, over all rounds.
type times struct {
	adds, dels []time.Duration
	// median of the ADDs, and pods attached per second, round by round.
	medians, rates []float64
	detached       []float64
}

const (
	wayNetplane  = "netplane"
	wayFloor     = "floor"
	wayEmpty     = "empty"
	wayAnswer    = "answer"
	wayReference = "reference"
)

// BenchmarkAttach has all ways attach and detach pods in turn, so that what
// else happens on the machine meets all of them.
func BenchmarkAttach(b *testing.B) {
	pods, slow, rounds := figures.Setting(b, "PODS", 64), figures.Setting(b, "SLOW", 8), figures.Setting(b, "ROUNDS", 3)
	shapes := []shape{{1, false}, {4, false}, {1, true}, {4, true}}
	makers := []struct {
		name string
		make func(*testing.B, shape) way
	}{{wayNetplane, newNode(b).way}, {wayFloor, newFloor}, {wayEmpty, newEmpty}, {wayAnswer, newAnswer}, {wayReference, newReference}}
	results := map[cell]*times{}
	for _, s := range shapes {
		ways := map[string]way{}
		for _, maker := range makers {
			ways[maker.name] = maker.make(b, s)
		}
		for round := range rounds {
			for _, atOnce := range []int{1, 4, 16} {
				for _, maker := range makers {
					count := pods
					if maker.name == wayReference && s.dual {
						count = max(slow, atOnce)
					}
					at := cell{maker.name, s, atOnce}
					if results[at] == nil {
						results[at] = &times{}
					}
					measure(b, ways[maker.name], fmt.Sprintf("%s-%s-%d-%d", maker.name, s, round, atOnce), count, atOnce, results[at])
				}
			}
		}
		for _, atOnce := range []int{1, 4, 16} {
			for _, maker := range makers {
				tell(b, cell{maker.name, s, atOnce}, results[cell{maker.name, s, atOnce}])
			}
		}
	}
	summarise(b, results)
}

func tell(b *testing.B, at cell, t *times) {
	b.Helper()
	figures.Say(b, "attach: %-9s %s %2d at once: ADD p50 %s p99 %s, %.0f pods/s; DEL p50 %s p99 %s, %.0f pods/s; %d pods", at.way, at.shape, at.atOnce,
		short(figures.Percentile(t.adds, 50)), short(figures.Percentile(t.adds, 99)), figures.Median(slices.Clone(t.rates)),
		short(figures.Percentile(t.dels, 50)), short(figures.Percentile(t.dels, 99)), figures.Median(slices.Clone(t.detached)), len(t.adds))
}

func short(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// summarise writes the figures. Ratios are made within a round; the median of
// all rounds counts.
func summarise(b *testing.B, results map[cell]*times) {
	b.Helper()
	four, dual := shape{4, false}, shape{4, true}
	alone := func(name string, s shape) []float64 { return results[cell{name, s, 1}].medians }
	figure(b, "speedup/4if-v4", alone(wayReference, four), alone(wayNetplane, four))
	figure(b, "speedup/4if-dual", alone(wayReference, dual), alone(wayNetplane, dual))
	figure(b, "times-floor/4if-dual", alone(wayNetplane, dual), alone(wayFloor, dual))
	figure(b, "start-times-floor/4if-dual", alone(wayEmpty, dual), alone(wayFloor, dual))
	figure(b, "answer-times-floor/4if-dual", alone(wayAnswer, dual), alone(wayFloor, dual))
	figure(b, "beyond-answer-times-floor/4if-dual", less(alone(wayNetplane, dual), alone(wayAnswer, dual)), alone(wayFloor, dual))
	figure(b, "throughput-16-over-4", results[cell{wayNetplane, dual, 16}].rates, results[cell{wayNetplane, dual, 4}].rates)
}

func less(from, what []float64) []float64 {
	out := make([]float64, len(from))
	for i := range from {
		out[i] = from[i] - what[i]
	}
	return out
}

func figure(b *testing.B, name string, over, under []float64) {
	b.Helper()
	ratios := make([]float64, len(over))
	for i := range over {
		ratios[i] = over[i] / under[i]
	}
	figures.Figure(b, "attach", name, figures.Median(ratios))
}

// measure attaches count pods, so many at once, and then detaches them; their
// namespaces are made before and dropped after.
func measure(b *testing.B, w way, name string, count, atOnce int, into *times) {
	b.Helper()
	dir := b.TempDir()
	pods := make([]pod, count)
	defer func() {
		for i := range pods { // of a measurement that failed
			_ = unix.Unmount(pods[i].netns, unix.MNT_DETACH)
		}
	}()
	for i := range pods {
		pods[i] = pod{id: fmt.Sprintf("%s-%d", name, i), netns: filepath.Join(dir, fmt.Sprintf("netns-%d", i))}
		must(b, isolated.MakeNamespace(pods[i].netns))
	}
	adds, rate := timed(b, pods, atOnce, w.add)
	dels, detached := timed(b, pods, atOnce, w.del)
	must(b, drop(pods))
	into.adds, into.dels = append(into.adds, adds...), append(into.dels, dels...)
	into.rates, into.detached = append(into.rates, rate), append(into.detached, detached)
	into.medians = append(into.medians, figures.Percentile(adds, 50).Seconds())
}

// timed does something to all pods, so many at once; it returns how long it
// took for each, and how many went through per second.
func timed(b *testing.B, pods []pod, atOnce int, do func(*pod) error) ([]time.Duration, float64) {
	b.Helper()
	took, failed := make([]time.Duration, len(pods)), make([]error, len(pods))
	next := make(chan int)
	var group sync.WaitGroup
	began := time.Now()
	for range atOnce {
		group.Go(func() {
			for i := range next {
				start := time.Now()
				failed[i] = do(&pods[i])
				took[i] = time.Since(start)
			}
		})
	}
	for i := range pods {
		next <- i
	}
	close(next)
	group.Wait()
	total := time.Since(began)
	must(b, errors.Join(failed...))
	return took, float64(len(pods)) / total.Seconds()
}

// drop lets the namespaces go and waits until the kernel has taken them down,
// so that no measurement competes with the end of the one before it.
func drop(pods []pod) error {
	const host, peer = "np-last", "last"
	last := pods[len(pods)-1]
	ns, err := netns.GetFromPath(last.netns)
	if err != nil {
		return err
	}
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host, TxQLen: -1}, PeerName: peer, PeerNamespace: netlink.NsFd(ns)})
	if err = errors.Join(err, ns.Close()); err != nil {
		return err
	}
	for i := range pods {
		if err := unix.Unmount(pods[i].netns, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("dropping %s: %w", pods[i].netns, err)
		}
		if err := os.Remove(pods[i].netns); err != nil {
			return err
		}
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		_, err := netlink.LinkByName(host)
		var gone netlink.LinkNotFoundError
		if errors.As(err, &gone) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the kernel has not taken the namespaces down within a minute: %v", err) //nolint:errorlint // err may be nil
		}
	}
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
