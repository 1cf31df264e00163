// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchattach

import (
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/test/isolated"
)

// The node's NICs. One becomes a port of a bridge, as the first interface of
// every pod is a port of one; the other is the parent of the macvlans.
const (
	nicBridged = "eth1"
	nicPlain   = "eth2"
)

func TestMain(m *testing.M) { os.Exit(isolated.Main(m, furnish)) }

// furnish makes the namespace of the tests a node.
func furnish() error {
	// libcni's default cache is below it, and must not be the machine's.
	if err := unix.Mount("tmpfs", "/var/lib", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("hiding /var/lib: %w", err)
	}
	up := []string{"lo"}
	for _, nic := range []string{nicBridged, nicPlain} {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nic, MTU: 1500, TxQLen: -1}, PeerName: "port-" + nic}); err != nil {
			return fmt.Errorf("making NIC %s: %w", nic, err)
		}
		up = append(up, "port-"+nic, nic)
	}
	for _, name := range up {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			return fmt.Errorf("setting %s up: %w", name, err)
		}
	}
	return nil
}
