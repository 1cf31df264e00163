// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/hex"
	"net"
	"net/netip"
	"testing"
)

var (
	ownMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	otherMAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}
)

func TestProbesNameNoSender(t *testing.T) {
	for _, test := range []struct {
		name string
		got  []byte
		want string
	}{
		// RFC 5227 2.1.1: sender protocol address zero, target hardware address zero.
		{"ARP", arpProbe(ownMAC, netip.MustParseAddr("10.10.0.5")),
			"ffffffffffff" + "020000000001" + "0806" + "0001080006040001" + "020000000001" + "00000000" + "000000000000" + "0a0a0005"},
		// RFC 4862 5.4.2: from ::, to the solicited-node group, without options.
		{"neighbour solicitation", solicitation(ownMAC, netip.MustParseAddr("fd00:10:10::a0a:5")),
			"3333ff0a0005" + "020000000001" + "86dd" + "60000000" + "00183aff" + "00000000000000000000000000000000" +
				"ff0200000000000000000001ff0a0005" + "8700" + "7369" + "00000000" + "fd000010001000000000000" + "00a0a0005"},
	} {
		if got := hex.EncodeToString(test.got); got != test.want {
			t.Errorf("%s\n got %s\nwant %s", test.name, got, test.want)
		}
	}
}

func TestChecksumOfAValidPacketIsZero(t *testing.T) {
	frame := solicitation(ownMAC, netip.MustParseAddr("fd00::1"))
	if sum := checksum(frame[ethLength:]); sum != 0 {
		t.Errorf("checksum over the checksum is %04x", sum)
	}
}

// advertisement answers a solicitation, with the option of the target's MAC.
func advertisement(target string, option net.HardwareAddr) []byte {
	frame := solicitation(otherMAC, netip.MustParseAddr(target))
	frame[icmpStart] = typeAdvertisement
	if option != nil {
		frame = append(append(frame, optionTargetAddress, 1), option...)
	}
	return frame
}

func reply(sender string) []byte {
	frame := arpProbe(otherMAC, netip.MustParseAddr("10.10.0.1"))
	copy(frame[28:], netip.MustParseAddr(sender).AsSlice())
	frame[21] = 2
	return frame
}

func changed(frame []byte, at int, to byte) []byte {
	frame[at] = to
	return frame
}

func TestAnswersAreToldFromOtherTraffic(t *testing.T) {
	v6 := netip.MustParseAddr("fd00::5")
	for _, test := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"ARP reply", reply("10.10.0.5"), "10.10.0.5 02:00:00:00:00:09"},
		{"ARP probe of another host", arpProbe(otherMAC, netip.MustParseAddr("10.10.0.5")), "10.10.0.5 02:00:00:00:00:09"},
		{"own ARP probe", arpProbe(ownMAC, netip.MustParseAddr("10.10.0.5")), ""},
		{"ARP of another protocol", changed(reply("10.10.0.5"), 17, 1), ""},
		{"advertisement", advertisement("fd00::5", nil), "fd00::5 02:00:00:00:00:09"},
		{"advertisement for another host", advertisement("fd00::5", net.HardwareAddr{2, 0, 0, 0, 0, 7}), "fd00::5 02:00:00:00:00:07"},
		{"advertisement that was routed", changed(advertisement("fd00::5", nil), ethLength+7, 64), ""},
		{"duplicate address detection of another host", solicitation(otherMAC, v6), "fd00::5 02:00:00:00:00:09"},
		{"own solicitation", solicitation(ownMAC, v6), ""},
		{"a host that looks for the address", changed(solicitation(otherMAC, v6), ethLength+8, 0xfe), ""},
		{"half a frame", solicitation(otherMAC, v6)[:60], ""},
		{"nothing", nil, ""},
	} {
		got, ok := readAnswer(test.frame, ownMAC)
		text := ""
		if ok {
			text = got.Address.String() + " " + got.MAC.String()
		}
		if text != test.want {
			t.Errorf("%s: %q, want %q", test.name, text, test.want)
		}
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add(reply("10.10.0.5"))
	f.Add(advertisement("fd00::5", otherMAC))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if answer, ok := readAnswer(frame, ownMAC); ok && (!answer.Address.IsValid() || len(answer.MAC) != macLength) {
			t.Errorf("%v of %x", answer, frame)
		}
	})
}
