// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netplane/netplane/test/isolated"
)

// advertised is what the API server names as its address, which must not be a
// loopback one. Nobody dials it.
const advertised = "192.0.2.1"

// The API server runs in the namespaces too, and the agent under test sees
// only the NICs that the test makes.
func TestMain(m *testing.M) { os.Exit(isolated.Main(m, furnish)) }

func furnish() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	address, err := netlink.ParseAddr(advertised + "/32")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, address); err != nil {
		return fmt.Errorf("giving lo an address: %w", err)
	}
	return nil
}
