// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Bounds of the wait for an interface to pass frames. The kernel mostly takes some
// ten microseconds for it, so the first looks come soon. A NIC that was moved has to
// find its carrier again; whatever else has none after readyWait stands on a NIC
// without, and has nobody to tell.
const (
	readyWait      = 50 * time.Millisecond
	carrierWait    = time.Second
	readyFirstPoll = 50 * time.Microsecond
	readyPoll      = time.Millisecond
)

// The settings by which the kernel announces what changes later: an interface that
// is set up again, or given another MAC.
const (
	notifyARP = "net.ipv4.conf." + sysctlInterface + ".arp_notify"
	notifyND  = "net.ipv6.conf." + sysctlInterface + ".ndisc_notify"
)

// Announce tells the neighbours who has the addresses of interfaces that are up,
// by a gratuitous ARP (RFC 5227 3) and an unsolicited neighbour advertisement (RFC
// 4861 7.2.6): whoever knew another MAC of an address learns the new one, and
// switches learn where it is.
//
// The kernel would do so itself while an interface is set up, under its RTNL mutex:
// a bridge and a NIC with macvlans hand such a frame to every pod on them before the
// request returns, so that an ADD would take the longer the more pods there are. One
// that comes late, as an agent was killed just then, costs little: the MAC follows
// from the address mostly, and the pod's own first frame serves as well.
func (l *Links) Announce(ctx context.Context, netnsPath string, specs ...Interface) error {
	wait := readyWait
	if slices.ContainsFunc(specs, func(i Interface) bool { return i.NIC != nil }) {
		wait = carrierWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	l.awaitPorts(ctx, specs)
	return inNamespaceOf(netnsPath, func(_ netns.NsHandle, inside *conn) error { return l.announce(ctx, inside, specs) })
}

// awaitPorts waits until the ends of veths pass frames into their bridges: not
// before the kernel's linkwatch has seen that both ends are up.
func (l *Links) awaitPorts(ctx context.Context, specs []Interface) {
	for i := range specs {
		spec := &specs[i]
		if spec.HostEnd == "" {
			continue
		}
		await(ctx, spec, "port "+spec.HostEnd, func() bool {
			end, err := l.host.LinkByName(spec.HostEnd)
			return err != nil || end.Attrs().OperState == netlink.OperUp
		})
	}
}

// await asks until it is done or ctx ends.
func await(ctx context.Context, spec *Interface, what string, done func() bool) {
	for poll := readyFirstPoll; !done(); poll = min(2*poll, readyPoll) {
		select {
		case <-ctx.Done():
			klog.FromContext(ctx).Info("Neighbours learn of an interface late: it passes no frames yet", "interface", spec.Name, "parent", spec.Parent, "waiting", what)
			return
		case <-time.After(poll):
		}
	}
}

// announce is Announce in the pod's namespace. What fails for one interface does not
// keep the others from being announced.
func (l *Links) announce(ctx context.Context, inside *conn, specs []Interface) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // of no protocol: it receives nothing
	if err != nil {
		return fmt.Errorf("opening a packet socket: %w", err)
	}
	// The kernel has whoever closes a packet socket wait until nobody sends by it any
	// more (synchronize_net in net/packet/af_packet.c): some milliseconds.
	defer func() { go func() { _ = unix.Close(fd) }() }()
	var failed []error
	for i := range specs {
		if err := l.announceOne(ctx, fd, inside, &specs[i]); err != nil {
			failed = append(failed, fmt.Errorf("announcing interface %s: %w", specs[i].Name, err))
		}
	}
	return errors.Join(failed...)
}

func (l *Links) announceOne(ctx context.Context, fd int, inside *conn, spec *Interface) (err error) {
	var found netlink.Link
	await(ctx, spec, "carrier", func() bool {
		var asked []*request
		if asked, err = inside.find([]string{spec.Name}); err == nil {
			found, err = asked[0].link()
		}
		return err != nil || found.Attrs().RawFlags&unix.IFF_RUNNING != 0
	})
	if err != nil {
		return err
	}
	own, err := settingsOf(&Interface{Name: spec.Name, Sysctls: notifications(spec)})
	if err != nil {
		return err
	}
	return errors.Join(l.writeSysctls(own), send(fd, found.Attrs(), spec))
}

// send announces the addresses of one interface. A link that resolves none, such as
// an ipvlan in a layer 3 mode, has nobody to tell.
func send(fd int, link *netlink.LinkAttrs, spec *Interface) error {
	if link.RawFlags&unix.IFF_NOARP != 0 || len(link.HardwareAddr) != macLength {
		return nil
	}
	for _, prefix := range spec.Addresses {
		address := prefix.Addr()
		frame, setting := gratuitousARP(link.HardwareAddr, address), notifyARP
		if address.Is6() {
			frame, setting = advertisement(link.HardwareAddr, address), notifyND
		}
		if slices.Contains(spec.Sysctls, Sysctl{setting, "0"}) {
			continue
		}
		switch err := transmit(fd, link.Index, frame); {
		case errors.Is(err, unix.ENETDOWN): // it is on its way out, or the pod's own will
			return nil
		case errors.Is(err, unix.ENXIO): // no such index any more
			return fmt.Errorf("of %s: %w", address, unix.ENODEV)
		case err != nil:
			return fmt.Errorf("of %s: %w", address, err)
		}
	}
	return nil
}

// notifications are the settings for later changes, but for those that the Network
// decides.
func notifications(spec *Interface) []Sysctl {
	all := []Sysctl{{notifyARP, "1"}}
	if hasIPv6(spec.Addresses) {
		all = append(all, Sysctl{notifyND, "1"})
	}
	return slices.DeleteFunc(all, func(ours Sysctl) bool {
		return slices.ContainsFunc(spec.Sysctls, func(s Sysctl) bool { return s.Name == ours.Name })
	})
}
