// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package vxlan reads what a Network of plugin vxlan is configured to be. The
// controller and every agent come to the same answer by it without talking. It
// reaches no API and changes nothing.
package vxlan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/netip"

	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	// DefaultPort is IANA's, RFC 7348 section 8.
	DefaultPort = 4789
	// MaxVNI is the highest VNI that spec.pluginConfig may name. The half above
	// it, up to 2^24-1, is for those that are derived, so that the two kinds
	// never meet.
	MaxVNI = firstDerived - 1

	firstDerived = 1 << 23

	// overhead4 is IPv4 20 + UDP 8 + VXLAN 8 + the inner Ethernet header 14;
	// IPv6 takes 20 more.
	overhead4 = 50
	overhead6 = 70
)

// Underlay is the IP family in which nodes talk to each other.
type Underlay string

// The families; empty means whatever address the NIC has, IPv4 first.
const (
	UnderlayAny  Underlay = ""
	UnderlayIPv4 Underlay = "IPv4"
	UnderlayIPv6 Underlay = "IPv6"
)

// Settings are what tells one VXLAN segment from another.
type Settings struct {
	// VNI is from 1 to 2^24-1.
	VNI uint32
	// Port is the UDP port that nodes send to.
	Port uint16
	// Underlay restricts the nodes' tunnel addresses to one family.
	Underlay Underlay
}

// config is spec.pluginConfig.
type config struct {
	VNI      *int64   `json:"vni"`
	Port     *int64   `json:"port"`
	Underlay Underlay `json:"underlay"`
}

// SettingsOf reads a Network's spec.pluginConfig. A VNI that it does not name
// follows from the Network's UID: a Network that is made anew under its old
// name then has no segment in common with what is left of the former one. The
// error names the field.
func SettingsOf(network *v1alpha1.Network) (Settings, error) {
	out := Settings{VNI: derive(string(network.UID)), Port: DefaultPort}
	if network.Spec.PluginConfig == nil || len(network.Spec.PluginConfig.Raw) == 0 {
		return out, nil
	}
	var c config
	decoder := json.NewDecoder(bytes.NewReader(network.Spec.PluginConfig.Raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return Settings{}, fmt.Errorf("pluginConfig of plugin vxlan: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Settings{}, errors.New("pluginConfig of plugin vxlan must be one JSON object")
	}
	if c.VNI != nil {
		if *c.VNI < 1 || *c.VNI > MaxVNI {
			return Settings{}, fmt.Errorf("pluginConfig.vni %d must be from 1 to %d: higher ones are derived", *c.VNI, MaxVNI)
		}
		out.VNI = uint32(*c.VNI)
	}
	if c.Port != nil {
		if *c.Port < 1 || *c.Port > 65535 {
			return Settings{}, fmt.Errorf("pluginConfig.port %d must be from 1 to 65535", *c.Port)
		}
		out.Port = uint16(*c.Port)
	}
	switch c.Underlay {
	case UnderlayAny, UnderlayIPv4, UnderlayIPv6:
		out.Underlay = c.Underlay
	default:
		return Settings{}, fmt.Errorf("pluginConfig.underlay %q must be %s or %s", c.Underlay, UnderlayIPv4, UnderlayIPv6)
	}
	return out, nil
}

func derive(uid string) uint32 {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(uid))
	return firstDerived | hash.Sum32()&(firstDerived-1)
}

// Collides says that a node could not have both segments: the kernel knows a
// vxlan device by VNI and port, whichever NIC it is on.
func (s Settings) Collides(other Settings) bool {
	return s.VNI == other.VNI && s.Port == other.Port
}

// TunnelAddress chooses the address that a node sends from and is sent to, of
// those that its NIC has, in the kernel's order: the first IPv4 address, or else
// the first global IPv6 one, or else the link-local one, which every NIC has.
func (s Settings) TunnelAddress(have []netip.Addr) (netip.Addr, bool) {
	var best netip.Addr
	for _, addr := range have {
		wrong := s.Underlay == UnderlayIPv4 && !addr.Is4() || s.Underlay == UnderlayIPv6 && addr.Is4()
		if !wrong && preference(addr) > preference(best) {
			best = addr
		}
	}
	return best, best.IsValid()
}

// preference is 0 for what cannot be a tunnel's end.
func preference(addr netip.Addr) int {
	switch {
	case !addr.IsValid(), addr.Is4() && addr.IsLinkLocalUnicast(), !addr.IsGlobalUnicast() && !addr.IsLinkLocalUnicast():
		return 0
	case addr.Is4():
		return 3
	case addr.IsGlobalUnicast():
		return 2
	}
	return 1
}

// MTU is the largest that pods can have behind a NIC of nicMTU, if nodes talk
// from vtep: what a tunnel sends is never fragmented.
func MTU(nicMTU int, vtep netip.Addr) int {
	if vtep.Is4() {
		return nicMTU - overhead4
	}
	return nicMTU - overhead6
}
