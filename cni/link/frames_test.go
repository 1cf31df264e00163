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

func TestFramesAreThoseOfTheRFCs(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.10.0.5"), netip.MustParseAddr("fd00:10:10::a0a:5")
	for _, test := range []struct {
		name string
		got  []byte
		want string
	}{
		// RFC 5227 2.1.1: sender protocol address zero, target hardware address zero.
		{"ARP probe", arpProbe(ownMAC, v4),
			"ffffffffffff" + "020000000001" + "0806" + "0001080006040001" + "020000000001" + "00000000" + "000000000000" + "0a0a0005"},
		// RFC 5227 3: sender and target protocol address are the same.
		{"gratuitous ARP", gratuitousARP(ownMAC, v4),
			"ffffffffffff" + "020000000001" + "0806" + "0001080006040001" + "020000000001" + "0a0a0005" + "000000000000" + "0a0a0005"},
		{"gratuitous ARP for IPv6", gratuitousARP(ownMAC, v6), ""},
		// RFC 4862 5.4.2: from ::, to the solicited-node group, without options.
		{"neighbour solicitation", solicitation(ownMAC, v6),
			"3333ff0a0005" + "020000000001" + "86dd" + "60000000" + "00183aff" + "00000000000000000000000000000000" +
				"ff0200000000000000000001ff0a0005" + "8700" + "7369" + "00000000" + "fd0000100010000000000000" + "0a0a0005"},
		// RFC 4861 4.4: to all nodes, overriding, with the option of the target's MAC.
		{"neighbour advertisement", advertisement(ownMAC, v6),
			"333300000001" + "020000000001" + "86dd" + "60000000" + "00203aff" + "fd0000100010000000000000" + "0a0a0005" +
				"ff020000000000000000000000000001" + "8800" + "463f" + "20000000" + "fd0000100010000000000000" + "0a0a0005" + "0201020000000001"},
	} {
		if got := hex.EncodeToString(test.got); got != test.want {
			t.Errorf("%s\n got %s\nwant %s", test.name, got, test.want)
		}
	}
}

func TestAnnouncementsAreRead(t *testing.T) {
	for _, address := range []string{"10.10.0.5", "fd00::5"} {
		of := netip.MustParseAddr(address)
		frame := gratuitousARP(otherMAC, of)
		if of.Is6() {
			frame = advertisement(otherMAC, of)
		}
		if got, ok := readAnswer(frame, ownMAC); !ok || got.Address != of || got.MAC.String() != otherMAC.String() {
			t.Errorf("%s is read as %v, %t", address, got, ok)
		}
		if of.Is6() && checksum(frame[ethLength:]) != 0 {
			t.Errorf("the checksum of %x is wrong", frame)
		}
	}
}

func TestChecksumOfAValidPacketIsZero(t *testing.T) {
	frame := solicitation(ownMAC, netip.MustParseAddr("fd00::1"))
	if sum := checksum(frame[ethLength:]); sum != 0 {
		t.Errorf("checksum over the checksum is %04x", sum)
	}
}

// answerTo answers a solicitation, with the option of the target's MAC.
func answerTo(target string, option net.HardwareAddr) []byte {
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
		{"advertisement", answerTo("fd00::5", nil), "fd00::5 02:00:00:00:00:09"},
		{"advertisement for another host", answerTo("fd00::5", net.HardwareAddr{2, 0, 0, 0, 0, 7}), "fd00::5 02:00:00:00:00:07"},
		{"advertisement that was routed", changed(answerTo("fd00::5", nil), ethLength+7, 64), ""},
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
	f.Add(answerTo("fd00::5", otherMAC))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if answer, ok := readAnswer(frame, ownMAC); ok && (!answer.Address.IsValid() || len(answer.MAC) != macLength) {
			t.Errorf("%v of %x", answer, frame)
		}
	})
}
