// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Times of a probe. RFC 5227 and RFC 4862 wait for seconds, as they were made
// for any network; a host of a data centre answers within a millisecond, and a
// pod waits here.
const (
	probeRounds = 3
	probeWait   = 150 * time.Millisecond
)

// Answer is a host's claim to an address that was asked about.
type Answer struct {
	Address netip.Addr
	MAC     net.HardwareAddr
}

// Probe asks the hosts behind a device of the host who has the addresses, before
// anybody uses them: by ARP probes (RFC 5227 2.1.1) and neighbour solicitations
// (RFC 4862 5.4), which name no sender and so spoil no neighbour's cache. It
// returns the first answers, or none after about half a second of silence.
func (l *Links) Probe(ctx context.Context, device string, addresses []netip.Addr) ([]Answer, error) {
	p, err := l.openProbe(device, addresses)
	if err != nil {
		return nil, fmt.Errorf("probing on %s: %w", device, explain(err, device))
	}
	defer p.close()
	for range probeRounds {
		if err := p.ask(); err != nil {
			return nil, fmt.Errorf("probing on %s: %w", device, explain(err, device))
		}
		answers, err := p.listen(ctx, time.Now().Add(probeWait))
		if err != nil || len(answers) > 0 {
			return answers, err
		}
	}
	return nil, nil
}

// probe is what one Probe works with.
type probe struct {
	index     int
	mac       net.HardwareAddr
	addresses []netip.Addr
	sockets   []unix.PollFd // of the families that are asked about
	v4, v6    int           // their descriptors, or -1
	buffer    []byte
}

func (l *Links) openProbe(device string, addresses []netip.Addr) (*probe, error) {
	dev, err := l.host.LinkByName(device)
	if err != nil {
		return nil, err
	}
	p := &probe{index: dev.Attrs().Index, mac: dev.Attrs().HardwareAddr, addresses: addresses, v4: -1, v6: -1, buffer: make([]byte, 2048)}
	if len(p.mac) != macLength {
		return nil, errors.New("it has no MAC address")
	}
	err = inNamespace(l.ns, func() (err error) {
		if slices.ContainsFunc(addresses, netip.Addr.Is4) {
			p.v4, err = p.open(unix.ETH_P_ARP, nil)
		}
		if err == nil && slices.ContainsFunc(addresses, netip.Addr.Is6) {
			p.v6, err = p.open(unix.ETH_P_IPV6, neighbourFilter())
		}
		return err
	})
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// open makes a socket for one protocol on the device. The filter is in force
// before the first frame comes.
func (p *probe) open(protocol uint16, filter []unix.SockFilter) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("opening a packet socket: %w", err)
	}
	p.sockets = append(p.sockets, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	if len(filter) > 0 {
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
			return -1, fmt.Errorf("filtering a packet socket: %w", err)
		}
		// Answers to a sender without address go to all nodes.
		all := unix.PacketMreq{Ifindex: int32(p.index), Type: unix.PACKET_MR_ALLMULTI}
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &all); err != nil {
			return -1, fmt.Errorf("listening for multicast: %w", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: p.index}); err != nil {
		return -1, fmt.Errorf("binding a packet socket: %w", err)
	}
	return fd, nil
}

func (p *probe) close() {
	for _, s := range p.sockets {
		_ = unix.Close(int(s.Fd))
	}
}

// ask sends one frame for each address.
func (p *probe) ask() error {
	for _, address := range p.addresses {
		frame, fd := arpProbe(p.mac, address), p.v4
		if address.Is6() {
			frame, fd = solicitation(p.mac, address), p.v6
		}
		if err := transmit(fd, p.index, frame); err != nil {
			return fmt.Errorf("asking for %s: %w", address, err)
		}
	}
	return nil
}

// listen returns the first answers that come until the deadline.
func (p *probe) listen(ctx context.Context, deadline time.Time) ([]Answer, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rest := time.Until(deadline)
		if rest <= 0 {
			return nil, nil
		}
		_, err := unix.Poll(p.sockets, int(rest.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("waiting for answers: %w", err)
		}
		var out []Answer
		for _, s := range p.sockets {
			if s.Revents == 0 {
				continue
			}
			answers, err := p.read(int(s.Fd))
			if err != nil {
				return nil, err
			}
			out = append(out, answers...)
		}
		if len(out) > 0 {
			return out, nil
		}
	}
}

// read takes what a socket has, and returns the answers in it, of each address
// the first.
func (p *probe) read(fd int) ([]Answer, error) {
	var out []Answer
	for {
		n, _, err := unix.Recvfrom(fd, p.buffer, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return out, nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return out, fmt.Errorf("reading answers: %w", err)
		}
		answer, ok := readAnswer(p.buffer[:n], p.mac)
		known := func(a Answer) bool { return a.Address == answer.Address }
		if ok && slices.Contains(p.addresses, answer.Address) && !slices.ContainsFunc(out, known) {
			out = append(out, answer)
		}
	}
}
