// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addressing

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// BlockName is the IPBlock's name: the network, a dot, and the canonical CIDR
// with ':' and '/' written as '-'. Two networks never share a name because
// network names have no dots.
func BlockName(network string, block netip.Prefix) string {
	return network + "." + strings.NewReplacer(":", "-", "/", "-").Replace(block.String())
}

// BlockSize is the number of addresses in a block.
func (p *Plan) BlockSize() int { return 1 << p.blockBits }

// Gateway returns the routers of the network; an invalid address means none.
func (p *Plan) Gateway() (gateway, gateway6 netip.Addr) { return p.gateway, p.gateway6 }

// Subnets are subnet, additionalSubnets and subnet6, in this order.
func (p *Plan) Subnets() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(p.areas)+1)
	for i := range p.areas {
		out = append(out, p.areas[i].subnet)
	}
	if p.prefix6.IsValid() {
		out = append(out, p.prefix6)
	}
	return out
}

// Overlaps reports whether some address belongs to both networks.
func (p *Plan) Overlaps(other *Plan) bool {
	for _, mine := range p.Subnets() {
		for _, theirs := range other.Subnets() {
			if mine.Overlaps(theirs) {
				return true
			}
		}
	}
	return false
}

// BlockCount is the number of blocks that can be claimed.
func (p *Plan) BlockCount() uint64 {
	var n uint64
	for i := range p.areas {
		static := p.staticIndexes(&p.areas[i])
		n += p.areas[i].blocks - uint64(static.overlap(static))
	}
	return n
}

// Candidates yields every block that can be claimed, once each, beginning at
// hash(node, network) so that nodes diverge without talking to each other.
func (p *Plan) Candidates(node string) iter.Seq[netip.Prefix] {
	total, start := p.total(), p.start(node)
	return func(yield func(netip.Prefix) bool) {
		for i := range total {
			block := p.block((start + i) % total)
			if p.isStatic(block) {
				continue
			}
			if !yield(block) {
				return
			}
		}
	}
}

// total is the number of blocks, those in the static range included.
func (p *Plan) total() uint64 {
	var total uint64
	for i := range p.areas {
		total += p.areas[i].blocks
	}
	return total
}

// start is the index at which a node begins to look for a block.
func (p *Plan) start(node string) uint64 {
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(node + "/" + p.network))
	return hash.Sum64() % p.total()
}

func (p *Plan) isStatic(block netip.Prefix) bool {
	return p.static.IsValid() && p.static.Overlaps(block)
}

// index is the reverse of block. It is false for what CheckBlock refuses.
func (p *Plan) index(block netip.Prefix) (uint64, bool) {
	if p.CheckBlock(block) != nil {
		return 0, false
	}
	var before uint64
	for i := range p.areas {
		a := &p.areas[i]
		if a.carved().Contains(block.Addr()) {
			return before + uint64(low32(block.Addr())-low32(a.subnet.Addr()))>>p.blockBits, true
		}
		before += a.blocks
	}
	return 0, false
}

func (p *Plan) block(index uint64) netip.Prefix {
	for i := range p.areas {
		a := &p.areas[i]
		if index < a.blocks {
			return p.blockOf(a, index)
		}
		index -= a.blocks
	}
	return netip.Prefix{}
}

func (p *Plan) blockOf(a *area, index uint64) netip.Prefix {
	addr := withLow32(a.subnet.Addr(), low32(a.subnet.Addr())+uint32(index<<p.blockBits))
	return netip.PrefixFrom(addr, addr.BitLen()-p.blockBits)
}

// CheckBlock tells whether block is one of the network's; the error says why not.
func (p *Plan) CheckBlock(block netip.Prefix) error {
	a := p.areaOf(block.Addr())
	switch {
	case a == nil:
		return fmt.Errorf("block %s lies in no subnet of network %q", block, p.network)
	case block.Addr().BitLen()-block.Bits() != p.blockBits:
		return fmt.Errorf("block %s does not have the %d addresses of a block of network %q", block, p.BlockSize(), p.network)
	case block != block.Masked():
		return fmt.Errorf("block %s is not aligned", block)
	case p.isStatic(block):
		return fmt.Errorf("block %s lies in the staticRange %s of network %q", block, p.static, p.network)
	}
	return nil
}

// carved is the part of the subnet that blocks are made of.
func (a *area) carved() netip.Prefix {
	return netip.PrefixFrom(a.subnet.Addr(), a.subnet.Addr().BitLen()-a.hostBits)
}

// areaOf finds the carved area that holds addr.
func (p *Plan) areaOf(addr netip.Addr) *area {
	for i := range p.areas {
		if p.areas[i].carved().Contains(addr) {
			return &p.areas[i]
		}
	}
	return nil
}

// usable yields the addresses of a block that somebody may have, in order.
func (p *Plan) usable(block netip.Prefix) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		a := p.areaOf(block.Addr())
		if a == nil {
			return
		}
		first := low32(block.Addr())
		next := 0
		for i := range uint32(p.BlockSize()) {
			low := first + i
			for next < len(a.reserved) && a.reserved[next].last < low {
				next++
			}
			if next < len(a.reserved) && a.reserved[next].first <= low {
				continue
			}
			if !yield(withLow32(block.Addr(), low)) {
				return
			}
		}
	}
}

// NodeAddress is the first usable address of a block: the node's own in the
// network. It is false for a block without a usable address.
func (p *Plan) NodeAddress(block netip.Prefix) (netip.Addr, bool) {
	for addr := range p.usable(block) {
		return addr, true
	}
	return netip.Addr{}, false
}

// PodAddresses yields the addresses of a block that pods may have, in order.
func (p *Plan) PodAddresses(block netip.Prefix) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		node := true
		for addr := range p.usable(block) {
			if node {
				node = false
				continue
			}
			if !yield(addr) {
				return
			}
		}
	}
}

// Serves tells whether a pod's interface may have addr by virtue of block: addr
// is one of the block's PodAddresses, or the IPv6 address that follows from one.
func (p *Plan) Serves(block netip.Prefix, addr netip.Addr) bool {
	if p.prefix6.IsValid() && addr.Is6() {
		derived := addr
		addr = withLow32(p.areas[0].subnet.Addr(), low32(derived))
		if !p.prefix6.Contains(derived) || withLow32(p.prefix6.Addr(), low32(derived)) != derived {
			return false
		}
	}
	a := p.areaOf(addr)
	if a == nil || !block.Contains(addr) || p.CheckBlock(block) != nil {
		return false
	}
	if node, ok := p.NodeAddress(block); !ok || addr == node {
		return false
	}
	low := low32(addr)
	return !slices.ContainsFunc(a.reserved, func(s span) bool { return s.first <= low && low <= s.last })
}

// Holds tells whether a pod's interface may have addr by virtue of block, under
// this spec or an earlier one: unlike Serves it passes what was excluded later,
// or has become the node's own by it, because pods keep what they have. It never
// passes the routers, nor the first and the last address of a subnet.
func (p *Plan) Holds(block netip.Prefix, addr netip.Addr) bool {
	addr = p.Principal(addr)
	a := p.areaOf(addr)
	if a == nil || !block.Contains(addr) || p.CheckBlock(block) != nil {
		return false
	}
	if addr == p.gateway || p.gateway6.IsValid() && addr == p.Principal(p.gateway6) {
		return false
	}
	low, first := low32(addr), low32(a.subnet.Addr())
	return low != first && (addr.Is6() || low != first|mask32(a.hostBits))
}

// Capacity is the number of pods' interfaces that a block serves: its usable
// addresses less the node's own.
func (p *Plan) Capacity(block netip.Prefix) int {
	a := p.areaOf(block.Addr())
	if a == nil {
		return 0
	}
	size := p.BlockSize()
	first := low32(block.Addr())
	last := first + uint32(size-1)
	for _, s := range a.reserved {
		if s.last < first || s.first > last {
			continue
		}
		size -= int(min(s.last, last)-max(s.first, first)) + 1
	}
	return max(0, size-1)
}

// TotalCapacity is the sum of Capacity over all blocks.
func (p *Plan) TotalCapacity() int64 {
	capacity, _ := p.totals()
	return capacity
}

// ServingBlockCount is the number of blocks that serve a pod: those with Capacity.
func (p *Plan) ServingBlockCount() int64 {
	_, barren := p.totals()
	return int64(p.BlockCount()) - barren
}

// totals returns the capacity of all blocks, and how many have none. It looks
// only at the blocks at the ends of reserved spans: an IPv6 network has too many
// to visit.
func (p *Plan) totals() (capacity, barren int64) {
	perBlock := int64(p.BlockSize() - 1)
	capacity = int64(p.BlockCount()) * perBlock
	for i := range p.areas {
		a := &p.areas[i]
		static := p.staticIndexes(a)
		base := low32(a.subnet.Addr())
		seen := int64(-1) // last block corrected: a block counts once however many spans touch it
		for _, s := range a.reserved {
			ends := indexes{int64(s.first-base) >> p.blockBits, int64(s.last-base) >> p.blockBits}
			for _, index := range []int64{ends.first, ends.last} {
				if index == seen || static.overlap(indexes{index, index}) > 0 {
					continue
				}
				seen = index
				rest := int64(p.Capacity(p.blockOf(a, uint64(index))))
				capacity -= perBlock - rest
				if rest == 0 {
					barren++
				}
			}
			inner := indexes{ends.first + 1, ends.last - 1} // reserved throughout
			reserved := inner.overlap(inner) - inner.overlap(static)
			capacity -= perBlock * reserved
			barren += reserved
		}
	}
	return capacity, barren
}

// indexes is a range of an area's blocks, both included; empty if last < first.
type indexes struct{ first, last int64 }

// overlap is the number of blocks in both ranges.
func (r indexes) overlap(other indexes) int64 {
	return max(0, min(r.last, other.last)-max(r.first, other.first)+1)
}

// staticIndexes are the area's blocks that the static range touches.
func (p *Plan) staticIndexes(a *area) indexes {
	if !p.static.IsValid() || !p.static.Overlaps(a.carved()) {
		return indexes{0, -1}
	}
	if p.static.Bits() <= a.carved().Bits() {
		return indexes{0, int64(a.blocks) - 1}
	}
	first := low32(p.static.Addr()) - low32(a.subnet.Addr())
	last := first + mask32(p.static.Addr().BitLen()-p.static.Bits())
	return indexes{int64(first >> p.blockBits), int64(last >> p.blockBits)}
}

// Interface returns what an interface with this address is configured with:
// the address in its subnet, and in a dual-stack network the IPv6 address that
// follows from it, in subnet6.
func (p *Plan) Interface(addr netip.Addr) []netip.Prefix {
	a := p.areaOf(addr)
	if a == nil {
		return nil
	}
	out := []netip.Prefix{netip.PrefixFrom(addr, a.subnet.Bits())}
	if p.prefix6.IsValid() {
		out = append(out, netip.PrefixFrom(withLow32(p.prefix6.Addr(), low32(addr)), p.prefix6.Bits()))
	}
	return out
}

// MAC is the hardware address that goes with an address: a reused address
// keeps its MAC, so that neighbours' caches stay true. 0a is locally
// administered unicast; the second octet keeps networks apart that share a
// parent and the low 32 bits, and so the IPv6 subnets of one network.
func (p *Plan) MAC(addr netip.Addr) net.HardwareAddr {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(p.network))
	mac := make(net.HardwareAddr, 6)
	mac[0], mac[1] = 0x0a, byte(hash.Sum32())
	if addr.Is6() {
		for i := range p.areas {
			if p.areas[i].carved().Contains(addr) {
				mac[1] += byte(i)
			}
		}
	}
	binary.BigEndian.PutUint32(mac[2:], low32(addr))
	return mac
}

func mask32(bits int) uint32 {
	if bits >= 32 {
		return ^uint32(0)
	}
	return 1<<bits - 1
}

func low32(addr netip.Addr) uint32 {
	raw := addr.As16()
	return binary.BigEndian.Uint32(raw[12:])
}

func withLow32(addr netip.Addr, low uint32) netip.Addr {
	if addr.Is4() {
		var raw [4]byte
		binary.BigEndian.PutUint32(raw[:], low)
		return netip.AddrFrom4(raw)
	}
	raw := addr.As16()
	binary.BigEndian.PutUint32(raw[12:], low)
	return netip.AddrFrom16(raw)
}
