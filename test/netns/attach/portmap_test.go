// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netplane/netplane/cni/wire"
)

// TestPortsAndBandwidthOfDefinitions: what a pod asks for beside the name of a
// definition reaches the plugins portmap and bandwidth, which do what they do
// under any runtime.
func TestPortsAndBandwidthOfDefinitions(t *testing.T) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("the plugin portmap runs iptables, and there is none")
	}
	h := newDelegatingHost(t)
	built, err := buildReference()
	must(t, err)
	for _, name := range []string{"portmap", "bandwidth"} {
		must(t, os.Symlink(filepath.Join(built, name), filepath.Join(h.bin, name)))
	}
	h.nads = map[string]string{"default/ported": `{"cniVersion":"1.0.0","name":"ported","plugins":[
		{"type":"bridge","bridge":"nad0","isGateway":true,"ipam":{"type":"host-local","subnet":"10.98.0.0/24"}},
		{"type":"portmap","backend":"iptables","capabilities":{"portMappings":true}},
		{"type":"bandwidth","capabilities":{"bandwidth":true}}]}`}
	h.start(t)
	rest := cluster(t, h.node)
	pod := newSpace(t, "pod")
	rt := h.runtimeConf("c1", pod, map[string]string{wire.AnnotationNPWGNetworks: `[{"name":"ported","default-route":["10.98.0.1"],
		"portMappings":[{"hostPort":8081,"containerPort":81,"protocol":"tcp"}],
		"bandwidth":{"ingressRate":8000000,"ingressBurst":8000000}}]`})
	_, err = h.cniAdd(rt)
	must(t, err)
	dial := func() error {
		return rest.in(func() error {
			conn, err := net.DialTimeout("tcp", "172.16.0.1:8081", 2*time.Second)
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
	}
	var listener net.Listener
	must(t, pod.in(func() (err error) {
		listener, err = net.Listen("tcp", "10.98.0.2:81")
		return err
	}))
	defer func() { _ = listener.Close() }()
	if err := dial(); err != nil {
		t.Errorf("by the host's port: %v", err)
	}
	if shaped(t, h.node) == 0 {
		t.Error("nothing bounds what the pod is sent")
	}
	must(t, h.cniCheck(rt))
	for range 2 {
		must(t, h.cniDel(rt))
	}
	if err := dial(); err == nil {
		t.Error("the host's port leads somewhere after DEL")
	}
	if left := shaped(t, h.node); left > 0 {
		t.Errorf("%d queues left", left)
	}
	noRecords(t)
	must(t, h.node.LinkDel(h.node.link(t, "nad0")))
}

// shaped counts the token buckets of a node's links.
func shaped(t *testing.T, node *space) int {
	t.Helper()
	count := 0
	all := whole(t, node.LinkList)
	for _, l := range all {
		queues, err := node.QdiscList(l)
		must(t, err)
		for _, q := range queues {
			if _, ok := q.(*netlink.Tbf); ok {
				count++
			}
		}
	}
	return count
}
