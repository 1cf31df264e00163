// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addressing

import (
	"fmt"
	"hash/fnv"
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// ClaimName is the name of the IPClaim of an address: the network, a dot, and
// the canonical address with ':' written as '-'.
func ClaimName(network string, addr netip.Addr) string {
	return network + "." + strings.ReplaceAll(addr.String(), ":", "-")
}

// StaticRange is where fixed addresses come from; an invalid prefix means none.
func (p *Plan) StaticRange() netip.Prefix { return p.static }

// Principal is the address that an IPClaim of addr names: of a dual-stack
// network's derived IPv6 address the IPv4 address, else addr itself.
func (p *Plan) Principal(addr netip.Addr) netip.Addr {
	if !p.prefix6.IsValid() || !addr.Is6() || !p.prefix6.Contains(addr) || withLow32(p.prefix6.Addr(), low32(addr)) != addr {
		return addr
	}
	return withLow32(p.areas[0].subnet.Addr(), low32(addr))
}

// CheckFixed tells whether a pod may have addr, a principal address, as its
// fixed one; the error says why not and is to follow the name of its field.
func (p *Plan) CheckFixed(addr netip.Addr) error {
	switch {
	case !p.static.IsValid():
		return fmt.Errorf("network %q has no staticRange, from which fixed addresses come", p.network)
	case !p.static.Contains(addr):
		return fmt.Errorf("%s does not lie in staticRange %s of network %q", addr, p.static, p.network)
	case p.isReserved(addr):
		return fmt.Errorf("%s is the gateway of network %q, excluded there, or the first or last address of the subnet", addr, p.network)
	}
	return nil
}

// FixedOf is the one principal address that a pod's list of addresses stands
// for, invalid for an empty list; the error says why no pod may have it. Of a
// dual-stack network the list must name the IPv4 address.
func (p *Plan) FixedOf(ips []string) (netip.Addr, error) {
	if len(ips) == 0 {
		if !p.static.IsValid() {
			return netip.Addr{}, fmt.Errorf("network %q has no staticRange, from which fixed addresses come", p.network)
		}
		return netip.Addr{}, nil
	}
	var fixed netip.Addr
	for i, text := range ips {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("ips: %q is no IP address such as 10.10.254.5", text)
		}
		switch principal := p.Principal(addr); {
		case i > 0 && principal != fixed:
			return netip.Addr{}, fmt.Errorf("ips: %s does not follow from the address beside it: leave the IPv6 address out", addr)
		default:
			fixed = principal
		}
	}
	if !slices.Contains(ips, fixed.String()) {
		return netip.Addr{}, fmt.Errorf("ips: write %s, the IPv4 address that %s follows from", fixed, ips[0])
	}
	if err := p.CheckFixed(fixed); err != nil {
		return netip.Addr{}, fmt.Errorf("ips: %w", err)
	}
	return fixed, nil
}

// isReserved tells whether no pod may have addr, or what follows from it.
func (p *Plan) isReserved(addr netip.Addr) bool {
	a := p.areaOf(addr)
	if a == nil {
		return true // of an IPv6 subnet beyond its first 2^32 addresses
	}
	low := low32(addr)
	return slices.ContainsFunc(a.reserved, func(s span) bool { return s.first <= low && low <= s.last })
}

// FixedAddresses yields every principal address that a pod may have as its
// fixed one, once each, beginning at hash(owner): whoever looks for the same
// owner again comes by the same addresses first.
func (p *Plan) FixedAddresses(owner string) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		if !p.static.IsValid() {
			return
		}
		hostBits := min(maxHostBits, p.static.Addr().BitLen()-p.static.Bits())
		size := uint64(1) << hostBits
		hash := fnv.New64a()
		_, _ = hash.Write([]byte(owner + "/" + p.network))
		start, base := hash.Sum64()%size, low32(p.static.Addr())
		for i := range size {
			addr := withLow32(p.static.Addr(), base+uint32((start+i)%size))
			if p.isReserved(addr) {
				continue
			}
			if !yield(addr) {
				return
			}
		}
	}
}
