// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestDataStaysOnItsNetwork is promise b: pods on two nodes reach each other
// over data, in both families, and nothing of it passes over the cluster's
// own network.
func TestDataStaysOnItsNetwork(t *testing.T) {
	ns := namespace(t)
	left := run(t, newPod(ns, "left", "data", on(env.node("worker"))))
	right := run(t, newPod(ns, "right", "data", on(env.node("worker3"))))
	checkAttached(t, left, map[string]string{"net1": netData})
	checkAttached(t, right, map[string]string{"net1": netData})
	b := enter(t, left)

	const count, size = 10, 1000
	nic := backing(t, physData)[left.Spec.NodeName]
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%t", v6), func(t *testing.T) {
			to := addressIn(t, right, netData, v6)
			filter := fmt.Sprintf("host %s and greater %d", to, size)
			cluster, data := listen(t, left.Spec.NodeName, "eth0", filter), listen(t, left.Spec.NodeName, nic, filter)
			before := b.links(t)
			out, err := b.sh(t, fmt.Sprintf("ping -c %d -i 0.2 -s %d -W 3 %s", count, size, to))
			if err != nil {
				t.Fatalf("ping %s: %v\n%s", to, err, out)
			}
			if !strings.Contains(out, fmt.Sprintf("%d packets received", count)) {
				t.Errorf("ping lost packets:\n%s", out)
			}
			after := b.links(t)
			if sent := after["net1"].Stats.TX.Bytes - before["net1"].Stats.TX.Bytes; sent < count*size {
				t.Errorf("net1 sent %d bytes, want at least the %d of the pings", sent, count*size)
			}
			if sent := after["eth0"].Stats.TX.Bytes - before["eth0"].Stats.TX.Bytes; sent >= size {
				t.Errorf("eth0, on the cluster network, sent %d bytes meanwhile", sent)
			}
			if got := data(); got == 0 {
				t.Errorf("nothing was heard on %s of %s, which backs %s", nic, left.Spec.NodeName, physData)
			}
			if got := cluster(); got != 0 {
				t.Errorf("%d packets of it were heard on the cluster's network", got)
			}
			b.mustReach(t, to, webPort, "right")
		})
	}
}

// packetLine is one packet as tcpdump -t shows it.
var packetLine = regexp.MustCompile(`(?m)^IP6? `)

// listen hears packets on a NIC of a node in the background; the function
// returned stops it and tells how many. Where the node has no tcpdump, the
// test goes by the interfaces' counters alone.
func listen(t *testing.T, node, nic, filter string) func() int {
	t.Helper()
	if _, err := onNode(t.Context(), node, "", "sh", "-c", "command -v tcpdump"); err != nil {
		t.Skipf("node %s has no tcpdump", node)
	}
	heard := make(chan int, 1)
	go func() {
		// It ends by itself: a signal to `docker exec` does not reach the node.
		out, _ := onNode(context.WithoutCancel(t.Context()), node, "", "timeout", "6", "tcpdump", "-nn", "-t", "-l", "-i", nic, filter)
		heard <- len(packetLine.FindAllString(out, -1))
	}()
	// A late start only loses the first pings.
	time.Sleep(time.Second)
	return func() int { return <-heard }
}
