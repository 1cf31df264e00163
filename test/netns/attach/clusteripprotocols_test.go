// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/binary"
	"hash/crc32"
	"maps"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestSCTPIsTranslated sends the first packet of an association by hand: this
// must work where the kernel has no SCTP sockets.
func TestSCTPIsTranslated(t *testing.T) {
	for to, network := range map[string]string{vip: "ip4:132", vip6: "ip6:132"} {
		t.Run(to, func(t *testing.T) {
			f := newFlock(t, "5")
			f.set(offer(unix.IPPROTO_SCTP, 0, "5"))
			var server net.PacketConn
			must(t, f.servers["5"].in(func() (err error) {
				server, err = net.ListenPacket(network, addrOf("5", to))
				return err
			}))
			defer func() { _ = server.Close() }()
			must(t, f.client.in(func() error {
				client, err := net.Dial(network, to)
				if err != nil {
					return err
				}
				defer func() { _ = client.Close() }()
				_, err = client.Write(sctpInit(5000, 80))
				return err
			}))
			must(t, server.SetReadDeadline(time.Now().Add(5*time.Second)))
			buf := make([]byte, 1500)
			n, from, err := server.ReadFrom(buf)
			must(t, err)
			if got := binary.BigEndian.Uint16(buf[2:n]); got != 8080 || from.String() != addrOf("9", to) {
				t.Errorf("a packet from %s to port %d arrives", from, got)
			}
		})
	}
}

// sctpInit is a packet with an INIT chunk (RFC 9260, 3.3.2).
func sctpInit(from, to uint16) []byte {
	out := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	out = append(out, make([]byte, 8)...)                 // no verification tag; the checksum
	out = append(out, 1, 0, 0, 20)                        // type, flags, length
	out = append(out, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1) // tag, window, streams out and in
	out = append(out, 0, 0, 0, 1)                         // first number
	binary.LittleEndian.PutUint32(out[8:], crc32.Checksum(out, crc32.MakeTable(crc32.Castagnoli)))
	return out
}

// A Service may have ports of several protocols at one number.
func TestProtocolsAtOnePortAreToldApart(t *testing.T) {
	f := newFlock(t, "5", "6")
	f.serveAll()
	want := offer(unix.IPPROTO_TCP, 0, "5")
	maps.Copy(want.Balances, offer(unix.IPPROTO_UDP, 0, "6").Balances)
	f.set(want)
	for _, to := range []string{vip, vip6} {
		for network, last := range map[string]string{"tcp": "5", "udp": "6"} {
			if diff := cmp.Diff(map[string]int{last + " " + addrOf("9", to): 5}, f.answers(network, to, 5)); diff != "" {
				t.Errorf("%s %s: %s", network, to, diff)
			}
		}
	}
}
