// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/test/isolated"
)

// space is a network namespace that stands for a node or a pod.
type space struct {
	*netlink.Handle
	ns   netns.NsHandle
	path string
}

// newSpace makes a namespace that is held by a bind mount, as runtimes do it.
func newSpace(t *testing.T, name string) *space {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	err := isolated.MakeNamespace(path)
	must(t, err)
	s := &space{path: path}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	if s.ns, err = netns.GetFromPath(path); err != nil {
		t.Fatal(err)
	}
	if s.Handle, err = netlink.NewHandleAt(s.ns, unix.NETLINK_ROUTE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.drop)
	s.up(t, "lo")
	return s
}

// drop lets go of the namespace; the kernel destroys it if nobody else is in it.
func (s *space) drop() {
	if s.Handle != nil {
		s.Close()
		_ = s.ns.Close()
		s.Handle = nil
	}
}

// in runs f inside the namespace.
func (s *space) in(f func() error) error { return isolated.In(s.path, f) }

func (s *space) sysctl(t *testing.T, path, value string) {
	t.Helper()
	must(t, s.in(func() error { return os.WriteFile("/proc/sys/net/"+path, []byte(value), 0) }))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *space) link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := s.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func (s *space) up(t *testing.T, name string) {
	t.Helper()
	must(t, s.LinkSetUp(s.link(t, name)))
}

// links lists the names of all links but lo.
func (s *space) links(t *testing.T) []string {
	t.Helper()
	all := whole(t, s.LinkList)
	var out []string
	for _, l := range all {
		if name := l.Attrs().Name; name != "lo" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// addresses lists what a link has, without link-local addresses.
func (s *space) addresses(t *testing.T, name string) []string {
	t.Helper()
	all := whole(t, func() ([]netlink.Addr, error) { return s.AddrList(s.link(t, name), netlink.FAMILY_ALL) })
	var out []string
	for _, a := range all {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		text := a.IPNet.String()
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			text += " tentative"
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

// routes lists a family's routes of the main table, as "to via dev".
func (s *space) routes(t *testing.T, family int) []string {
	t.Helper()
	all := whole(t, func() ([]netlink.Route, error) { return s.RouteList(nil, family) })
	var out []string
	for _, r := range all {
		if r.Type != unix.RTN_UNICAST || r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast()) {
			continue
		}
		dev, err := s.LinkByIndex(r.LinkIndex)
		must(t, err)
		text := "default"
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				text = r.Dst.String()
			}
		}
		if r.Gw != nil {
			text += " via " + r.Gw.String()
		}
		text += " dev " + dev.Attrs().Name
		if r.Src != nil && r.Protocol != unix.RTPROT_KERNEL {
			text += " src " + r.Src.String()
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

// wired makes nodes whose NIC eth1 hangs on one switch.
func wired(t *testing.T, names ...string) []*space {
	t.Helper()
	fabric := newSpace(t, "switch")
	must(t, fabric.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "sw", TxQLen: -1}}))
	fabric.up(t, "sw")
	var out []*space
	for _, name := range names {
		node := newSpace(t, name)
		port := "port-" + name
		must(t, fabric.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: port, MTU: 1500, TxQLen: -1}, PeerTxQLen: -1,
			PeerName: "eth1", PeerMTU: 1500, PeerNamespace: netlink.NsFd(node.ns),
		}))
		must(t, fabric.LinkSetMaster(fabric.link(t, port), fabric.link(t, "sw")))
		fabric.up(t, port)
		node.up(t, "eth1")
		out = append(out, node)
	}
	// A port drops frames until the kernel's linkwatch has made it forward.
	for i, name := range names {
		eventually(t, "the NIC and its port are up", func() bool {
			return out[i].link(t, "eth1").Attrs().OperState == netlink.OperUp && fabric.link(t, "port-"+name).Attrs().OperState == netlink.OperUp
		})
	}
	return out
}

// whole lists anew what changed while the kernel listed it.
func whole[T any](t *testing.T, list func() ([]T, error)) []T {
	t.Helper()
	out, err := list()
	for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < 100; try++ {
		out, err = list()
	}
	must(t, err)
	return out
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func openLinks(t *testing.T, node *space) *link.Links {
	t.Helper()
	links, err := link.Open(link.Config{NetNS: node.path})
	must(t, err)
	t.Cleanup(links.Close)
	return links
}

// reach opens a TCP connection from one namespace to an address in another and
// returns the address that the far side saw.
func reach(t *testing.T, from, to *space, addr string) string {
	t.Helper()
	return reachBy(t, from, to, addr, addr)
}

// reachBy is reach where the far side has another address than the one that is
// asked for.
func reachBy(t *testing.T, from, to *space, asked, addr string) string {
	t.Helper()
	var listener net.Listener
	must(t, to.in(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	}))
	defer func() { _ = listener.Close() }()
	seen := make(chan string, 1)
	go func() {
		if conn, err := listener.Accept(); err == nil {
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			seen <- host
			_ = conn.Close()
		}
	}()
	err := from.in(func() error {
		_, port, err := net.SplitHostPort(listener.Addr().String())
		if err != nil {
			return err
		}
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(asked, port), 3*time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	if err != nil {
		t.Fatalf("reaching %s by %s: %v", addr, asked, err)
	}
	return <-seen
}

// frames captures what arrives at a NIC.
type frames struct {
	fd   int
	read [][]byte // by all
}

func capture(t *testing.T, s *space, nic string) *frames {
	t.Helper()
	f := &frames{}
	must(t, s.in(func() (err error) {
		if f.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		index := s.link(t, nic).Attrs().Index
		return unix.Bind(f.fd, &unix.SockaddrLinklayer{Protocol: binary.BigEndian.Uint16([]byte{0, unix.ETH_P_ALL}) << 8, Ifindex: index})
	}))
	t.Cleanup(func() { _ = unix.Close(f.fd) })
	must(t, unix.SetsockoptTimeval(f.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	return f
}

// announcements reads until every expected announcement came, or time is up,
// and returns those that came: "arp 10.10.0.5 at <mac>", "na fd00::5 at <mac>".
func (f *frames) announcements(want []string) []string {
	var out []string
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		n, _, err := unix.Recvfrom(f.fd, buf, 0)
		if err != nil {
			continue
		}
		if text := announcement(buf[:n]); text != "" && !slices.Contains(out, text) {
			out = append(out, text)
		}
		if !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(out, w) }) {
			break
		}
	}
	slices.Sort(out)
	return out
}

// announcement decodes a gratuitous ARP (RFC 5227) or an unsolicited neighbour
// advertisement (RFC 4861 7.2.6) of a global address.
func announcement(frame []byte) string {
	if len(frame) < 42 {
		return ""
	}
	source := net.HardwareAddr(frame[6:12])
	switch binary.BigEndian.Uint16(frame[12:14]) {
	case unix.ETH_P_ARP:
		sender, target := net.IP(frame[28:32]), net.IP(frame[38:42])
		if sender.Equal(target) {
			return fmt.Sprintf("arp %s at %s", sender, source)
		}
	case unix.ETH_P_IPV6:
		const solicited = 0x40
		if len(frame) >= 78 && frame[20] == unix.IPPROTO_ICMPV6 && frame[54] == 136 && frame[58]&solicited == 0 {
			target := netip.AddrFrom16([16]byte(frame[62:78]))
			if !target.IsLinkLocalUnicast() {
				return fmt.Sprintf("na %s at %s", target, source)
			}
		}
	}
	return ""
}

func ipNet(text string) *net.IPNet {
	addr, n, err := net.ParseCIDR(text)
	if err != nil {
		return nil
	}
	n.IP = addr
	return n
}

func prefixes(text string) []netip.Prefix {
	var out []netip.Prefix
	for p := range strings.FieldsSeq(text) {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}
