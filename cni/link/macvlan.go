// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Modes of a macvlan (Interface.Mode), as ip(8) names them.
const (
	ModeBridge   = "bridge"
	ModeVEPA     = "vepa"
	ModePrivate  = "private"
	ModePassthru = "passthru"
)

// createMacvlan makes a macvlan of the parent, which stays the host's.
func createMacvlan(p *pod, spec *Interface) error {
	mode, err := macvlanMode(spec.Mode)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(spec.MAC)
	if err != nil {
		return err
	}
	parent, err := p.parent(spec)
	if err != nil {
		return err
	}
	err = p.addInside(spec, parent, mac, func(attrs netlink.LinkAttrs) netlink.Link {
		return &netlink.Macvlan{LinkAttrs: attrs, Mode: mode}
	})
	// macvlan_common_newlink in drivers/net/macvlan.c
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("a macvlan in passthru mode must be alone on %s: %w", spec.Parent, err)
	}
	return err
}

func macvlanMode(name string) (netlink.MacvlanMode, error) {
	switch name {
	case "", ModeBridge:
		return netlink.MACVLAN_MODE_BRIDGE, nil
	case ModeVEPA:
		return netlink.MACVLAN_MODE_VEPA, nil
	case ModePrivate:
		return netlink.MACVLAN_MODE_PRIVATE, nil
	case ModePassthru:
		return netlink.MACVLAN_MODE_PASSTHRU, nil
	}
	return 0, fmt.Errorf("a macvlan has no mode %q", name)
}

func checkMacvlan(_ *pod, born netlink.Link, spec *Interface) []string {
	mode, err := macvlanMode(spec.Mode)
	if macvlan, ok := born.(*netlink.Macvlan); err == nil && ok && macvlan.Mode != mode {
		return []string{"is not in mode " + orDefault(spec.Mode, ModeBridge)}
	}
	return nil
}

func orDefault(mode, fallback string) string {
	if mode == "" {
		return fallback
	}
	return mode
}
