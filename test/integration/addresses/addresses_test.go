// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package addresses lets fifty agents live through random histories on a real
// API server, and checks that no address is ever in two namespaces and that
// none is lost. What is real: etcd, kube-apiserver, each agent's address
// management with its caches and its journal on disk, and the controller. What
// is not: kubelets, runtimes and kernels, which are a map of namespaces that
// outlives the agents.
//
// A history is drawn from a seed, which is printed. The seed decides every
// step; how they interleave, time decides. NETPLANE_SEED replays one seed,
// NETPLANE_SEEDS runs so many, NETPLANE_SOAK runs for a time; see `make soak`. In
// every fourth history etcd is set back to a backup under the running agents.
//
// The run assumes what the design assumes. A Node is deleted when its machine
// is off, or when its kubelet still reaches the API server: nobody can tell a
// kubelet that is cut off to stop its containers. Only the record that an agent
// wrote when it died may be torn: the journal lies in tmpfs. And a backup is
// older than what any agent's caches lag behind, or its memory: see seeing.
package addresses

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/test/integration/apiserver"
)

// `make test` does so many runs, less on a slow machine: after a while it begins
// no other, unless it has not done the least.
const (
	defaultSeeds = 4
	leastSeeds   = 2
	defaultTime  = time.Minute
)

// rollbackEvery is how many seeds there are to one with a restored backup.
const rollbackEvery = 4

// apiServer is the API server that all runs share.
var apiServer *apiserver.Server

func TestMain(m *testing.M) {
	// Faults are what these tests are made of: what the parts say about them is
	// in a run's history.
	klog.SetLogger(logr.Discard())
	ctrllog.SetLogger(logr.Discard())
	os.Exit(apiserver.MainWithServer(m, func(s *apiserver.Server) { apiServer = s }))
}

func TestNoAddressIsGivenTwiceOrLost(t *testing.T) {
	next := seeds(t)
	runs, made, empty := 0, 0, 0
	for {
		seed, ok := next()
		if !ok {
			break
		}
		runs++
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			interfaces := run(t, seed, fmt.Sprint("r", runs))
			made += interfaces
			if interfaces == 0 {
				empty++ // on a machine too slow for the life of a history
			}
		})
	}
	t.Logf("%d runs, %d interfaces; in %d runs none", runs, made, empty)
	if made == 0 {
		t.Error("no interface was made at all: nothing is proven")
	}
}

// seeds yields the seeds to run.
func seeds(t *testing.T) func() (uint64, bool) {
	t.Helper()
	if text := os.Getenv("NETPLANE_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal("reading NETPLANE_SEED: ", err)
		}
		done := false
		return func() (uint64, bool) {
			defer func() { done = true }()
			return seed, !done
		}
	}
	count, least, until := defaultSeeds, leastSeeds, time.Now().Add(defaultTime)
	if text := os.Getenv("NETPLANE_SEEDS"); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil {
			t.Fatal("reading NETPLANE_SEEDS: ", err)
		}
		least = count
	}
	if text := os.Getenv("NETPLANE_SOAK"); text != "" {
		length, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal("reading NETPLANE_SOAK: ", err)
		}
		count, least, until = math.MaxInt, 0, time.Now().Add(length)
	}
	seed, done := uint64(time.Now().UnixNano())%1_000_000_000, 0
	return func() (uint64, bool) {
		seed++
		done++
		return seed, done <= count && (done <= least || time.Now().Before(until))
	}
}

// run lives through a history and returns how many interfaces were made in it.
func run(t *testing.T, seed uint64, name string) int {
	began := time.Now()
	t.Logf("seed %d: replay it with NETPLANE_SEED=%d", seed, seed)
	w := newWorld(t, newPlan(seed, seed%rollbackEvery == 0), name)
	w.start()
	started := time.Now()
	w.live()
	lived := time.Now()
	w.settle()
	settled := time.Now()
	w.end()
	t.Logf("seed %d: %d interfaces made; start %s, life %s, settling %s, end %s", seed, w.kernel.made,
		started.Sub(began).Round(time.Millisecond), lived.Sub(started).Round(time.Millisecond),
		settled.Sub(lived).Round(time.Millisecond), time.Since(settled).Round(time.Millisecond))
	switch {
	case len(w.violations) > 0:
		t.Errorf("seed %d:\n%s\nreplay it with NETPLANE_SEED=%d; what happened is in %s", seed, strings.Join(w.violations, "\n"), seed, w.log.file.Name())
	case os.Getenv("NETPLANE_SEED") != "":
		t.Logf("what happened is in %s", w.log.file.Name())
	default:
		w.check(w.log.drop())
	}
	return w.kernel.made
}
