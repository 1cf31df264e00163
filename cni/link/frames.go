// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Layout of the frames that probes and announcements consist of: Ethernet II with ARP (RFC
// 826), or with IPv6 (RFC 8200) and neighbour discovery (RFC 4861 4.3, 4.4).
const (
	macLength  = 6
	ethLength  = 14
	arpLength  = ethLength + 28
	ipv6Length = 40
	icmpStart  = ethLength + ipv6Length
	ndLength   = 24 // type, code, checksum, reserved or flags, target
	ndEnd      = icmpStart + ndLength

	typeSolicitation    = 135
	typeAdvertisement   = 136
	optionTargetAddress = 2
	hopLimit            = 255 // RFC 4861 7.1: anything less was routed, and is no neighbour's
)

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

// ethernet begins a frame.
func ethernet(to, from net.HardwareAddr, protocol uint16) []byte {
	frame := make([]byte, 0, ndEnd)
	frame = append(frame, to...)
	frame = append(frame, from...)
	return binary.BigEndian.AppendUint16(frame, protocol)
}

// arpProbe asks who has an IPv4 address; the sender's own is zero. For any other
// address it is nil.
func arpProbe(mac net.HardwareAddr, address netip.Addr) []byte {
	if !address.Is4() {
		return nil
	}
	frame := ethernet(bytes.Repeat([]byte{0xff}, macLength), mac, unix.ETH_P_ARP)
	frame = append(frame, 0, 1, 8, 0, macLength, 4, 0, 1) // Ethernet, IPv4, request
	frame = append(frame, mac...)
	frame = append(frame, 0, 0, 0, 0)
	frame = append(frame, make([]byte, macLength)...)
	return append(frame, address.AsSlice()...)
}

// solicitation asks who has an IPv6 address, as duplicate address detection
// does: from the unspecified address to the solicited-node group.
func solicitation(mac net.HardwareAddr, address netip.Addr) []byte {
	group, target := netip.MustParseAddr("ff02::1:ff00:0").As16(), address.As16()
	copy(group[13:], target[13:])
	return discovery(mac, netip.IPv6Unspecified(), netip.AddrFrom16(group), address, typeSolicitation, 0)
}

// discovery is a message of neighbour discovery about a target, to a group.
func discovery(mac net.HardwareAddr, from, group, target netip.Addr, kind, flags byte, options ...byte) []byte {
	to := group.AsSlice()
	frame := ethernet(append(net.HardwareAddr{0x33, 0x33}, to[12:]...), mac, unix.ETH_P_IPV6) // RFC 2464 7
	frame = append(frame, 6<<4, 0, 0, 0, 0, byte(ndLength+len(options)), unix.IPPROTO_ICMPV6, hopLimit)
	frame = append(frame, from.AsSlice()...)
	frame = append(frame, to...)
	frame = append(frame, kind, 0, 0, 0, flags, 0, 0, 0)
	frame = append(frame, target.AsSlice()...)
	frame = append(frame, options...)
	binary.BigEndian.PutUint16(frame[icmpStart+2:], checksum(frame[ethLength:]))
	return frame
}

// transmit sends a frame on the device of an index, by a packet socket.
func transmit(fd, index int, frame []byte) error {
	protocol := binary.BigEndian.Uint16(frame[2*macLength:])
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: index, Halen: macLength})
}

// gratuitousARP tells all who has an IPv4 address (RFC 5227 3), as the kernel's own
// does by a request; for any other address it is nil.
func gratuitousARP(mac net.HardwareAddr, address netip.Addr) []byte {
	frame := arpProbe(mac, address)
	if frame != nil {
		copy(frame[ethLength+14:], address.AsSlice()) // the sender's
	}
	return frame
}

// advertisement tells all nodes who has an IPv6 address, and overrides what they
// knew of it (RFC 4861 4.4, 7.2.6).
func advertisement(mac net.HardwareAddr, address netip.Addr) []byte {
	const override = 0x20
	option := append([]byte{optionTargetAddress, 1}, mac...) // of 8 octets
	return discovery(mac, address, netip.IPv6LinkLocalAllNodes(), address, typeAdvertisement, override, option...)
}

// checksum is ICMPv6's (RFC 4443 2.3) of an IPv6 packet whose own is zero.
func checksum(packet []byte) uint16 {
	message := packet[ipv6Length:]
	sum := uint32(len(message)) + unix.IPPROTO_ICMPV6
	for _, part := range [][]byte{packet[8:ipv6Length], message} {
		for pair := range slices.Chunk(part, 2) {
			sum += uint32(pair[0]) << 8
			if len(pair) == 2 {
				sum += uint32(pair[1])
			}
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// neighbourFilter passes solicitations and advertisements of neighbours: a
// socket for IPv6 would otherwise get a copy of all that the NIC receives.
func neighbourFilter() []unix.SockFilter {
	const (
		loadByte  = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		jumpEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		give      = unix.BPF_RET | unix.BPF_K
	)
	return []unix.SockFilter{
		{Code: loadByte, K: ethLength + 6},
		{Code: jumpEqual, K: unix.IPPROTO_ICMPV6, Jf: 4},
		{Code: loadByte, K: icmpStart},
		{Code: jumpEqual, K: typeSolicitation, Jt: 1},
		{Code: jumpEqual, K: typeAdvertisement, Jf: 1},
		{Code: give, K: 0xffff},
		{Code: give, K: 0},
	}
}

// readAnswer reads from a frame which address its sender has, or is about to
// take. What this host, own, sent is no answer.
func readAnswer(frame []byte, own net.HardwareAddr) (Answer, bool) {
	if len(frame) < arpLength || bytes.Equal(frame[macLength:2*macLength], own) {
		return Answer{}, false
	}
	switch binary.BigEndian.Uint16(frame[2*macLength:]) {
	case unix.ETH_P_ARP:
		return readARP(frame)
	case unix.ETH_P_IPV6:
		return readNeighbour(frame)
	}
	return Answer{}, false
}

func readARP(frame []byte) (Answer, bool) {
	if !bytes.Equal(frame[ethLength:ethLength+6], []byte{0, 1, 8, 0, macLength, 4}) {
		return Answer{}, false
	}
	body := frame[ethLength+8:]
	answer := Answer{MAC: slices.Clone(net.HardwareAddr(body[:macLength])), Address: netip.AddrFrom4([4]byte(body[6:10]))}
	if answer.Address.IsUnspecified() {
		// Somebody else is about to take it (RFC 5227 2.1.1).
		answer.Address = netip.AddrFrom4([4]byte(body[16:20]))
	}
	return answer, true
}

func readNeighbour(frame []byte) (Answer, bool) {
	if len(frame) < ndEnd || frame[ethLength+6] != unix.IPPROTO_ICMPV6 || frame[ethLength+7] != hopLimit {
		return Answer{}, false
	}
	answer := Answer{
		MAC:     slices.Clone(net.HardwareAddr(frame[macLength : 2*macLength])),
		Address: netip.AddrFrom16([16]byte(frame[icmpStart+8 : ndEnd])),
	}
	switch frame[icmpStart] {
	case typeAdvertisement:
		if option := frame[ndEnd:]; len(option) >= 8 && option[0] == optionTargetAddress && option[1] == 1 {
			answer.MAC = slices.Clone(net.HardwareAddr(option[2:8]))
		}
		return answer, true
	case typeSolicitation:
		// Somebody else is about to take it (RFC 4862 5.4.3).
		return answer, netip.AddrFrom16([16]byte(frame[ethLength+8 : ethLength+24])).IsUnspecified()
	}
	return Answer{}, false
}
