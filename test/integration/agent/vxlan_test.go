// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// TestVXLANNode has the agent, with its own rights, tell others where the
// node's addresses are, and follow the blocks of others while a pod is there.
func TestVXLANNode(t *testing.T) {
	w := newWorld(t)
	w.network("blue", v1alpha1.NetworkSpec{PhysicalNet: "phy-net0", Plugin: v1alpha1.PluginVXLAN, Subnet: "10.70.0.0/24", BlockSize: 16})
	w.startAgent()
	w.await("the node's block to name its link-local address", func() error {
		return w.ownVTEP("fe80::")
	})
	var blue v1alpha1.Network
	w.must(w.client.Get(t.Context(), client.ObjectKey{Name: "blue"}, &blue))
	device := "npx" + strings.TrimPrefix(link.OverlayBridge(string(blue.UID)), "npb")
	if _, err := netlink.LinkByName(device); err == nil {
		t.Error("there is a vxlan device although no pod is")
	}

	own := w.blocks()[0].Spec.CIDR
	free := v1alpha1.CIDR("10.70.0.240/28")
	if own == free {
		free = "10.70.0.224/28"
	}
	w.hold(&blue, free, "worker2", "fe80::99")
	pod := w.newSandbox("first", "blue@net1")
	_, err := w.add(pod)
	w.must(err)
	if got := w.interfaces(pod); !strings.HasPrefix(got, "net1 veth 10.70.0.") {
		t.Errorf("interfaces %q, want net1", got)
	}
	// The ADD waits for the peers.
	if err := wantTable(device, map[string]int{"fe80::99": 17}); err != nil {
		t.Errorf("after the ADD: %v", err)
	}
	w.hold(&blue, free, "worker3", "fe80::77")
	w.await("the block's new holder to be sent to", func() error { return wantTable(device, map[string]int{"fe80::77": 17}) })

	t.Run("a restarted agent goes on", func(t *testing.T) {
		w.must(w.process.Process.Kill())
		<-w.ended //nolint:errcheck // it was killed: how it ended says nothing
		w.hold(&blue, free, "", "")
		w.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: link.OverlayBridge("gone"), TxQLen: -1}}))
		w.startAgent()
		w.await("the table to be empty", func() error { return wantTable(device, map[string]int{}) })
		w.await("what a former run left to be gone", func() error { return wantGone(link.OverlayBridge("gone")) })
	})
	t.Run("an address on the NIC is told to others", func(t *testing.T) {
		w.hold(&blue, free, "worker2", "192.168.77.2")
		nic, err := netlink.LinkByName("eth1")
		w.must(err)
		address, err := netlink.ParseAddr("192.168.77.1/24")
		w.must(err)
		w.must(netlink.AddrAdd(nic, address))
		w.await("the node's block to name it", func() error { return w.ownVTEP("192.168.77.1") })
		w.await("the device to send from it", func() error { return wantTable(device, map[string]int{"192.168.77.2": 17}) })
	})
	w.must(w.del(pod))
	w.await("the device to go with the last pod", func() error { return wantGone(device) })
	if strings.Contains(w.log.String(), "is forbidden") {
		t.Errorf("the service account lacks a right:\n%s", w.log)
	}
}

// blocks are those of the Network "blue" that the agent's node holds.
func (w *world) blocks() []v1alpha1.IPBlock {
	w.Helper()
	var all v1alpha1.IPBlockList
	w.must(w.client.List(w.Context(), &all))
	var out []v1alpha1.IPBlock
	for i := range all.Items {
		if all.Items[i].Spec.Network == "blue" && all.Items[i].Spec.NodeName == nodeName {
			out = append(out, all.Items[i])
		}
	}
	return out
}

// ownVTEP wants all of the node's blocks to have a tunnel address that begins so.
func (w *world) ownVTEP(prefix string) error {
	own := w.blocks()
	if len(own) == 0 {
		return errors.New("the node has no block")
	}
	for i := range own {
		if !strings.HasPrefix(string(own[i].Spec.VTEP), prefix) {
			return fmt.Errorf("block %s has the tunnel address %q", own[i].Name, own[i].Spec.VTEP)
		}
	}
	return nil
}

// hold gives a block to another node in place of whoever had it; to nobody if
// node is empty.
func (w *world) hold(network *v1alpha1.Network, cidr v1alpha1.CIDR, node, vtep string) {
	w.Helper()
	block := &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName(network.Name, netip.MustParsePrefix(string(cidr)))},
		Spec: v1alpha1.IPBlockSpec{
			Network: network.Name, NetworkUID: network.UID, CIDR: cidr, NodeName: node, NodeUID: "uid-of-another", VTEP: v1alpha1.IP(vtep),
		},
	}
	w.must(client.IgnoreNotFound(w.client.Delete(w.Context(), block)))
	if node != "" {
		w.must(w.client.Create(w.Context(), block))
	}
}

// wantTable compares the number of entries of a vxlan device by tunnel address.
func wantTable(device string, want map[string]int) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	entries, err := netlink.NeighList(l.Attrs().Index, unix.AF_BRIDGE)
	if err != nil {
		return err
	}
	got := map[string]int{}
	for _, e := range entries {
		if e.IP != nil && e.Flags&netlink.NTF_SELF != 0 {
			got[e.IP.String()]++
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("the device forwards to %v, want %v", got, want)
	}
	return nil
}

func wantGone(name string) error {
	_, err := netlink.LinkByName(name)
	var gone netlink.LinkNotFoundError
	switch {
	case err == nil:
		return fmt.Errorf("%s is there", name)
	case errors.As(err, &gone):
		return nil
	}
	return err
}
