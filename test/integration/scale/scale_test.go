// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package scale tests a Network that has far fewer blocks than nodes, at the
// size for which netplane is meant: 5,000 nodes that share a /16. API server,
// scheduler and controller are real, and so are the agents' decisions; see fleet.
package scale

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/test/integration/schedulerprocess"
)

const (
	nodes  = 5000
	subnet = "10.64.0.0/16"
	blocks = 1024 // of 64 addresses, which is the default

	// daemons are the nodes to which pods are pinned: more than there are blocks.
	daemons = 1200

	// interfaces is how many addresses a pod of the wave asks for: with one each
	// the wave has 64 thousand pods, which take the API server and the scheduler
	// longer than all other tests together; CONTRIBUTING.md says how to run that.
	interfaces         = 31
	interfacesVariable = "NETPLANE_TEST_INTERFACES"
)

func TestMain(m *testing.M) {
	if code, scheduled := schedulerprocess.Main(); scheduled {
		os.Exit(code)
	}
	ctrllog.SetLogger(klog.Background())
	os.Exit(m.Run())
}

func TestNoAddressOfA16StaysUnusedBy5000Nodes(t *testing.T) {
	began := time.Now()
	lap := func(what string) {
		t.Logf("%-60s %6.1fs", what, time.Since(began).Seconds())
		began = time.Now()
	}
	w := newWorld(t, nodes, subnet)
	lap("everything runs, the nodes are there")

	// One pod on each of more nodes than there are blocks.
	w.createPods(daemons, func(i int) *corev1.Pod { return pinned(podOf(fmt.Sprint("daemon-", i), 1), nodeName(i)) })
	w.awaitBound(blocks)
	w.awaitReasons(`1 node(s) held no address block of network "wide"`)
	a := w.check()
	lap("every block is claimed by a node")

	// Where a block is already, there is room; elsewhere there is none.
	first := a.bound[:20]
	w.createPods(len(first), func(i int) *corev1.Pod { return pinned(podOf(fmt.Sprint("second-", i), 1), first[i].Spec.NodeName) })
	w.awaitBound(blocks + len(first))
	w.check()
	lap("nodes with a block take second pods")

	// Blocks that fall free go to those who wait.
	for _, count := range []int{100, daemons - blocks - 100} {
		a = w.check()
		w.giveBack(alone(a, count))
		w.awaitBound(len(a.bound))
		w.check()
		lap(fmt.Sprintf("%d blocks have gone from node to node", count))
	}

	// Pods that may run anywhere take what is left, to the last address: in
	// blocks that nodes hold, and in such as nobody has.
	w.giveBack(alone(w.check(), 200))
	each := interfacesEach(t)
	large, small := w.room(each)
	running := len(w.check().bound)
	w.createPods(large, func(i int) *corev1.Pod { return podOf(fmt.Sprint("large-", i), each) })
	w.awaitBound(running + large)
	w.check()
	lap(fmt.Sprintf("%d pods have taken %d addresses each", large, each))
	w.createPods(small+10, func(i int) *corev1.Pod { return podOf(fmt.Sprint("small-", i), 1) })
	w.awaitBound(running + large + small)
	w.awaitReasons(`node(s) had no free address in network "wide"`)
	a = w.check()
	if left := a.plan.TotalCapacity() - a.total(); left != 0 || len(a.pending) != 10 {
		t.Errorf("%d addresses are left and %d pods pending, want none and 10", left, len(a.pending))
	}
	lap(fmt.Sprintf("%d pods have taken the rest", small))

	// The last addresses pass on, too.
	w.end(a.bound[:10]...)
	w.awaitBound(running + large + small)
	if a = w.check(); len(a.pending) > 0 {
		t.Errorf("%d pods are pending", len(a.pending))
	}
	lap("every pod runs")
}

// interfacesEach is how many interfaces a pod of the wave asks for.
func interfacesEach(t *testing.T) int {
	t.Helper()
	text := os.Getenv(interfacesVariable)
	if text == "" {
		return interfaces
	}
	each, err := strconv.Atoi(text)
	if err != nil || each < 1 {
		t.Fatalf("%s is %q, want a number", interfacesVariable, text)
	}
	return each
}
