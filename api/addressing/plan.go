// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package addressing is the arithmetic of a Network's addresses: how its
// subnets are carved into blocks, how a block is named, how many pods it
// serves, and which IPv6 address and MAC go with an address. It is pure, so
// that scheduler, controller and agent come to the same answer.
package addressing

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"github.com/netplane/netplane/api/v1alpha1"
)

// ErrNoSubnet is returned by NewPlan for a Network without a subnet: its
// delegated plugin brings its own address management.
var ErrNoSubnet = errors.New("the Network has no subnet")

// Limits of the default block size.
const (
	minDefaultBlock = 8
	maxDefaultBlock = 64
)

// maxHostBits bounds what is carved of a subnet: dual stack and MAC addresses
// are derived from 32 bits, so an IPv6 subnet serves its first 2^32 addresses.
const maxHostBits = 32

// span is a range of addresses of an area, by their low 32 bits, both included.
type span struct{ first, last uint32 }

// area is the part of one subnet that is carved.
type area struct {
	subnet   netip.Prefix // as the admin wrote it
	hostBits int          // of the carved part
	blocks   uint64       // in all, those in the static range included
	reserved []span       // sorted, disjoint: never given to a pod
}

// Plan is how the addresses of one Network are laid out. It is immutable and
// safe for concurrent use.
type Plan struct {
	network   string
	areas     []area
	prefix6   netip.Prefix // zero for single stack
	static    netip.Prefix // zero for none
	blockBits int          // log2 of the block size
	gateway   netip.Addr
	gateway6  netip.Addr
}

// NewPlan reads a Network's spec. It returns ErrNoSubnet for a Network without
// one; any other error names the field that is wrong.
func NewPlan(network string, spec *v1alpha1.NetworkSpec) (*Plan, error) {
	if spec.Subnet == "" {
		return nil, ErrNoSubnet
	}
	p := &Plan{network: network}
	if err := p.readPrefixes(spec); err != nil {
		return nil, err
	}
	if err := p.readBlockSize(spec.BlockSize); err != nil {
		return nil, err
	}
	excluded, err := p.readAddresses(spec)
	if err != nil {
		return nil, err
	}
	for i := range p.areas {
		p.finish(&p.areas[i], excluded)
	}
	return p, nil
}

func (p *Plan) readPrefixes(spec *v1alpha1.NetworkSpec) error {
	texts := append([]v1alpha1.CIDR{spec.Subnet}, spec.AdditionalSubnets...)
	for i, text := range texts {
		field := "subnet"
		if i > 0 {
			field = fmt.Sprintf("additionalSubnets[%d]", i-1)
		}
		subnet, err := parsePrefix(field, text)
		if err != nil {
			return err
		}
		for _, other := range p.areas {
			if other.subnet.Overlaps(subnet) {
				return fmt.Errorf("%s: %s overlaps %s", field, subnet, other.subnet)
			}
			if other.subnet.Addr().Is4() != subnet.Addr().Is4() {
				return fmt.Errorf("%s: %s is not of the same IP family as subnet %s", field, subnet, other.subnet)
			}
		}
		p.areas = append(p.areas, area{subnet: subnet, hostBits: min(maxHostBits, subnet.Addr().BitLen()-subnet.Bits())})
	}
	var err error
	if spec.Subnet6 != "" {
		if p.prefix6, err = parsePrefix("subnet6", spec.Subnet6); err != nil {
			return err
		}
		if !p.prefix6.Addr().Is6() || p.prefix6.Bits() > 96 || !p.areas[0].subnet.Addr().Is4() {
			return fmt.Errorf("subnet6: %s must be an IPv6 prefix of at most /96 beside an IPv4 subnet", p.prefix6)
		}
	}
	if spec.StaticRange != "" {
		if p.static, err = parsePrefix("staticRange", spec.StaticRange); err != nil {
			return err
		}
		first := p.areas[0].subnet
		if first.Bits() > p.static.Bits() || !first.Contains(p.static.Addr()) {
			return fmt.Errorf("staticRange: %s does not lie in subnet %s", p.static, first)
		}
	}
	return nil
}

func (p *Plan) readBlockSize(size int32) error {
	if size == 0 {
		size = defaultBlockSize(p.areas[0].hostBits)
	}
	if size < 0 || bits.OnesCount32(uint32(size)) != 1 {
		return fmt.Errorf("blockSize: %d is not a power of two", size)
	}
	p.blockBits = bits.TrailingZeros32(uint32(size))
	for i := range p.areas {
		a := &p.areas[i]
		if a.hostBits < p.blockBits {
			return fmt.Errorf("blockSize: %d is larger than subnet %s", size, a.subnet)
		}
		a.blocks = 1 << (a.hostBits - p.blockBits)
	}
	return nil
}

// defaultBlockSize is max(8, min(64, size/16)), but never more than the subnet.
func defaultBlockSize(hostBits int) int32 {
	size := uint64(1) << hostBits
	return int32(min(size, max(minDefaultBlock, min(maxDefaultBlock, size/16))))
}

// readAddresses returns every range that no pod may have, besides those that
// follow from the subnets themselves.
func (p *Plan) readAddresses(spec *v1alpha1.NetworkSpec) ([]addrRange, error) {
	var out []addrRange
	for i, text := range spec.ExcludeRanges {
		r, err := parseRange(string(text))
		if err != nil {
			return nil, fmt.Errorf("excludeRanges[%d]: %w", i, err)
		}
		out = append(out, r)
	}
	for _, gw := range []struct {
		field string
		text  v1alpha1.IP
		into  *netip.Addr
	}{{"gateway", spec.Gateway, &p.gateway}, {"gateway6", spec.Gateway6, &p.gateway6}} {
		if gw.text == "" {
			continue
		}
		addr, err := netip.ParseAddr(string(gw.text))
		if err != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("%s: %q is no IP address such as 10.10.0.1", gw.field, gw.text)
		}
		if !p.routes(gw.field, addr) {
			return nil, fmt.Errorf("%s: %s lies in no subnet of the network", gw.field, addr)
		}
		*gw.into = addr
		out = append(out, addrRange{addr, addr})
	}
	return out, nil
}

// routes tells whether addr may stand in the gateway field: gateway6 is of
// subnet6, gateway of the other subnets.
func (p *Plan) routes(field string, addr netip.Addr) bool {
	if field == "gateway6" {
		return p.prefix6.IsValid() && p.prefix6.Contains(addr)
	}
	return slices.ContainsFunc(p.areas, func(a area) bool { return a.subnet.Contains(addr) })
}

// finish computes the area's reserved spans.
func (p *Plan) finish(a *area, excluded []addrRange) {
	first := low32(a.subnet.Addr())
	last := first | mask32(a.hostBits)
	spans := []span{{first, first}} // network address, or subnet-router anycast (RFC 4291 2.6.1)
	if a.subnet.Addr().Is4() {
		spans = append(spans, span{last, last}) // broadcast
	}
	carved := addrRange{withLow32(a.subnet.Addr(), first), withLow32(a.subnet.Addr(), last)}
	for _, r := range excluded {
		if s, ok := r.within(carved); ok {
			spans = append(spans, s)
		}
		if !p.prefix6.IsValid() || r.first.Is4() {
			continue
		}
		derived := addrRange{withLow32(p.prefix6.Addr(), first), withLow32(p.prefix6.Addr(), last)}
		if s, ok := r.within(derived); ok {
			spans = append(spans, s)
		}
	}
	a.reserved = merge(spans)
}

func merge(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int {
		if a.first < b.first {
			return -1
		}
		if a.first > b.first {
			return 1
		}
		return 0
	})
	out := spans[:1]
	for _, s := range spans[1:] {
		last := &out[len(out)-1]
		if s.first <= last.last || s.first-1 == last.last {
			last.last = max(last.last, s.last)
			continue
		}
		out = append(out, s)
	}
	return out
}

func parsePrefix(field string, text v1alpha1.CIDR) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(string(text))
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s: %q is no CIDR such as 10.10.0.0/16", field, text)
	}
	if prefix != prefix.Masked() {
		return netip.Prefix{}, fmt.Errorf("%s: %s has host bits set: write %s", field, prefix, prefix.Masked())
	}
	if prefix.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s: %s is an IPv4-mapped IPv6 prefix: write the IPv4 one", field, prefix)
	}
	if prefix.Addr().Is6() && prefix.Addr().As16()[0] == 0 {
		// Reserved (RFC 4291 section 2.4), and its text begins with "::", with
		// which no object name may have a part beginning.
		return netip.Prefix{}, fmt.Errorf("%s: %s lies in the reserved prefix ::/8: choose one such as fd00:10:10::/64", field, prefix)
	}
	return prefix, nil
}

// addrRange is a range of addresses, both included.
type addrRange struct{ first, last netip.Addr }

func parseRange(text string) (addrRange, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return addrRange{prefix.Masked().Addr(), lastOf(prefix)}, nil
	}
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	first, err1 := netip.ParseAddr(from)
	last, err2 := netip.ParseAddr(to)
	if err1 != nil || err2 != nil || first.Zone() != "" || last.Zone() != "" {
		return addrRange{}, fmt.Errorf("%q is no CIDR, address, or range first-last", text)
	}
	if first.BitLen() != last.BitLen() || last.Less(first) {
		return addrRange{}, fmt.Errorf("%q does not go from a lower to a higher address of one family", text)
	}
	return addrRange{first, last}, nil
}

func lastOf(prefix netip.Prefix) netip.Addr {
	raw := prefix.Masked().Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 1 << (7 - bit%8)
	}
	addr, _ := netip.AddrFromSlice(raw)
	return addr
}

// within clips r to other, whose addresses differ in their low 32 bits only.
func (r addrRange) within(other addrRange) (span, bool) {
	if r.first.BitLen() != other.first.BitLen() || r.last.Less(other.first) || other.last.Less(r.first) {
		return span{}, false
	}
	first, last := r.first, r.last
	if first.Less(other.first) {
		first = other.first
	}
	if other.last.Less(last) {
		last = other.last
	}
	return span{low32(first), low32(last)}, true
}
