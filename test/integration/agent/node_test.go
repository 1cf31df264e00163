// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/program"
)

// TestNode runs the agent as the DaemonSet does, with the rights that the
// manifests give it, and the CNI binary as a runtime does.
func TestNode(t *testing.T) {
	w := newWorld(t)
	w.startAgent()

	offered := w.nodeNetwork()
	if p := offered.Status.PhysicalNetworks; len(p) != 2 || !p[0].Ready || !p[1].Ready {
		t.Errorf("physicalNetworks %v, want two that are ready: the agent said that it is", p)
	}
	w.await("a block of each network to be claimed", func() error {
		var blocks v1alpha1.IPBlockList
		if err := w.client.List(t.Context(), &blocks); err != nil || len(blocks.Items) == 2 {
			return err
		}
		return fmt.Errorf("%d blocks", len(blocks.Items))
	})

	first := w.newSandbox("first", "management@eth0")
	result, err := w.add(first)
	w.must(err)
	if len(result.IPs) != 2 {
		t.Fatalf("result %v, want an IPv4 and an IPv6 address", result.IPs)
	}
	address := netip.MustParsePrefix(result.IPs[0].Address.String())
	if !netip.MustParsePrefix("10.10.0.0/16").Contains(address.Addr()) || address.Bits() != 16 {
		t.Errorf("address %s is not of 10.10.0.0/16", address)
	}
	wantLinks := regexp.MustCompile(`^eth0 macvlan 10\.10\.[0-9.]+/16 fd00:10:10::[0-9a-f:]+/64$`)
	if got := w.interfaces(first); !wantLinks.MatchString(got) {
		t.Errorf("interfaces %q, want %s", got, wantLinks)
	}
	w.awaitStatus(first, []string{address.Addr().String(), result.IPs[1].Address.IP.String()})

	t.Run("a pod that asks for nothing gets what the node had before", func(t *testing.T) {
		plain := w.newSandbox("plain", "")
		result, err := w.add(plain)
		if err != nil {
			t.Fatal(err)
		}
		if got := result.IPs[0].Address.String(); got != "10.244.1.9/24" {
			t.Errorf("address %s, want the default network's", got)
		}
		if err := w.del(plain); err != nil {
			t.Error(err)
		}
	})

	t.Run("a beside network comes beside the default one", func(t *testing.T) {
		beside := w.newSandbox("beside", "management")
		if _, err := w.add(beside); err != nil {
			t.Fatal(err)
		}
		if got := w.interfaces(beside); !strings.HasPrefix(got, "net1 macvlan 10.10.") {
			t.Errorf("interfaces %q, want net1", got)
		}
		if err := w.del(beside); err != nil {
			t.Error(err)
		}
	})

	t.Run("an unknown network is refused by its name", func(t *testing.T) {
		_, err := w.add(w.newSandbox("lost", "nowhere@eth1"))
		if err == nil || !strings.Contains(err.Error(), "nowhere") {
			t.Errorf("error %v, want one that names the network", err)
		}
	})

	t.Run("the NIC's state is followed", func(t *testing.T) {
		for _, up := range []bool{false, true} {
			w.set("eth1", up)
			w.await(fmt.Sprintf("NIC up=%t to be published", up), func() error {
				if p := w.nodeNetwork().Status.PhysicalNetworks; len(p) != 2 || p[0].Ready != up {
					return fmt.Errorf("physicalNetworks %v", p)
				}
				return nil
			})
		}
	})

	t.Run("a NIC that comes back finds its bridge again", func(t *testing.T) {
		pod := w.newSandbox("bridged", "data@eth1")
		if _, err := w.add(pod); err != nil {
			t.Fatal(err)
		}
		if got := w.interfaces(pod); !strings.HasPrefix(got, "eth1 veth 10.20.") {
			t.Errorf("interfaces %q, want eth1", got)
		}
		w.unplug("eth2")
		w.plug("eth2")
		w.await("the NIC to be a port of its bridge", func() error {
			port, err := netlink.LinkByName("eth2")
			if err != nil {
				return err
			}
			bridge, err := netlink.LinkByName("np-eth2")
			if err == nil && port.Attrs().MasterIndex != bridge.Attrs().Index {
				err = fmt.Errorf("its master is %d, not %d", port.Attrs().MasterIndex, bridge.Attrs().Index)
			}
			return err
		})
		if err := w.del(pod); err != nil {
			t.Error(err)
		}
	})

	t.Run("the interfaces of a running pod follow its annotation", func(*testing.T) { testHotPlug(w) })

	t.Run("a kill loses nothing", func(t *testing.T) {
		w.must(w.process.Process.Kill())
		<-w.ended //nolint:errcheck // it was killed: how it ended says nothing
		spooled := w.newSandbox("spooled", "management@eth0")
		if _, err := w.add(spooled); err == nil {
			t.Error("a pod got its networks from an agent that is dead")
		}
		if err := w.del(spooled); err != nil {
			t.Errorf("DEL while the agent is down: %v", err)
		}
		w.startAgent()
		second := w.newSandbox("second", "management@eth0")
		result, err := w.add(second)
		if err != nil {
			t.Fatal(err)
		}
		if got := result.IPs[0].Address.IP.String(); got == address.Addr().String() {
			t.Errorf("%s was given out twice", got)
		}
		if err := w.del(second); err != nil {
			t.Error(err)
		}
	})

	t.Run("addresses of a pod that is gone are held", func(t *testing.T) {
		w.must(w.client.Delete(t.Context(), first.pod, client.GracePeriodSeconds(0)))
		w.await("held to be published", func() error {
			if h := w.nodeNetwork().Status.Held; len(h) != 1 || h[0].PodUID != first.pod.UID || h[0].Count != 1 {
				return fmt.Errorf("held %v", h)
			}
			return nil
		})
	})

	t.Run("metrics are served", func(t *testing.T) {
		text, err := program.Fetch(w.metrics, "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			`netplane_agent_physical_network_ready{physical_network="phy-net0"} 1`,
			`netplane_agent_addresses_held{network="management"} 1`,
			"netplane_agent_ready 1",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("no %s in the metrics", want)
			}
		}
		t.Logf("resident memory: %s", residentMemory(w.process.Process.Pid))
	})

	t.Run("DEL works while the API server is away", func(t *testing.T) {
		w.gate.close()
		if err := w.del(first); err != nil {
			t.Fatal(err)
		}
		if got := w.interfaces(first); got != "" {
			t.Errorf("interfaces %q are left", got)
		}
		if left := journal(t, w.state); left != "" {
			t.Errorf("the journal holds %q", left)
		}
		if _, err := program.Fetch(w.health, "/readyz"); err != nil {
			t.Errorf("readiness: %v", err)
		}
		w.gate.open()
		w.await("held to be empty again", func() error {
			if h := w.nodeNetwork().Status.Held; len(h) != 0 {
				return fmt.Errorf("held %v", h)
			}
			return nil
		})
	})

	t.Run("SIGTERM ends it and leaves the configuration", func(t *testing.T) {
		w.must(w.process.Process.Signal(syscall.SIGTERM))
		select {
		case err := <-w.ended:
			if err != nil {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(eventually):
			t.Fatal("it does not end")
		}
		if _, err := os.Stat(filepath.Join(w.conf, "00-netplane.conflist")); err != nil {
			t.Error(err)
		}
	})
	if strings.Contains(w.log.String(), "is forbidden") {
		t.Errorf("the service account lacks a right:\n%s", w.log)
	}
}
