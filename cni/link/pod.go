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
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Bounds of the wait for a bridge port to forward, see announce.
const (
	portWait = time.Second
	portPoll = time.Millisecond
)

// pod is one pod's namespace, open for one operation.
type pod struct {
	*Links
	ns     netns.NsHandle
	handle *netlink.Handle
}

func (l *Links) openPod(path string) (*pod, error) {
	ns, err := openNamespace(path)
	if err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("opening netlink socket in the pod: %w", err)
	}
	return &pod{Links: l, ns: ns, handle: handle}, nil
}

func (p *pod) close() {
	p.handle.Close()
	_ = p.ns.Close()
}

// Add makes an interface in a pod's namespace, or nothing. The order counts:
// born down, notifications switched on, addresses, up. Only so does the kernel
// announce the addresses to the neighbours (inetdev_event in
// net/ipv4/devinet.c, ndisc_netdev_event in net/ipv6/ndisc.c).
func (l *Links) Add(ctx context.Context, netnsPath string, spec Interface) (err error) {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	p, err := l.openPod(netnsPath)
	if err != nil {
		return err
	}
	defer p.close()
	// CNI specification, ADD: an interface of that name must not exist.
	if _, err := p.handle.LinkByName(spec.Name); err == nil {
		return fmt.Errorf("the pod has an interface %s already", spec.Name)
	}
	if err := p.create(&spec); err != nil {
		return fmt.Errorf("making %s %s on %s: %w", spec.Kind, spec.Name, spec.Parent, explain(err, spec.Parent))
	}
	finished := false
	defer func() {
		if !finished {
			err = errors.Join(err, p.remove(&spec))
		}
	}()
	if err := p.configure(ctx, &spec); err != nil {
		return fmt.Errorf("configuring %s: %w", spec.Name, err)
	}
	finished = true
	return nil
}

// create makes the link, down. The library looks a new link up in the host's
// namespace and so fills in the index of another link of that name: nothing
// that LinkAdd leaves in its argument is used.
func (p *pod) create(spec *Interface) error {
	mac, err := net.ParseMAC(spec.MAC)
	if err != nil {
		return err
	}
	parent, err := p.host.LinkByName(spec.Parent)
	if err != nil {
		return err
	}
	if limit := parent.Attrs().MTU; spec.MTU > limit {
		return fmt.Errorf("mtu %d is larger than the %d of %s", spec.MTU, limit, spec.Parent)
	}
	if spec.Kind == KindVeth {
		return p.createVeth(spec, mac, parent)
	}
	attrs := netlink.LinkAttrs{Name: spec.Name, ParentIndex: parent.Attrs().Index, MTU: spec.MTU, HardwareAddr: mac, TxQLen: -1, Namespace: netlink.NsFd(p.ns)}
	err = p.host.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE})
	if !isExists(err) {
		return err
	}
	// Older kernels look the name up in the host's namespace too, where
	// eth0 exists: be born under another name and take the right one at once.
	attrs.Name = hostEndPrefix + digest(spec.Name, spec.MAC)[:hashDigits]
	if err := p.host.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
		return err
	}
	born, err := p.handle.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	if err := p.handle.LinkSetName(born, spec.Name); err != nil {
		return errors.Join(err, p.handle.LinkDel(born))
	}
	return nil
}

// createVeth makes the host's end the primary link, so that the pod's end is
// born in the pod and the host's can be a port of the bridge.
func (p *pod) createVeth(spec *Interface, mac net.HardwareAddr, bridge netlink.Link) error {
	if stale, err := p.host.LinkByName(spec.HostEnd); err == nil {
		if err := p.host.LinkDel(stale); err != nil {
			return fmt.Errorf("removing %s of an earlier attempt: %w", spec.HostEnd, err)
		}
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: spec.HostEnd, MTU: spec.MTU, TxQLen: -1},
		PeerName:  spec.Name, PeerHardwareAddr: mac, PeerMTU: uint32(spec.MTU), PeerTxQLen: -1, PeerNamespace: netlink.NsFd(p.ns),
	}
	if err := p.host.LinkAdd(veth); err != nil {
		return err
	}
	end, err := p.host.LinkByName(spec.HostEnd)
	if err == nil {
		// A port has no use for addresses of its own.
		_ = p.setSysctls(p.Links.ns, []sysctl{{"ipv6/conf/" + spec.HostEnd + "/disable_ipv6", "1"}})
		if err = p.host.LinkSetMaster(end, bridge); err == nil {
			err = p.host.LinkSetUp(end)
		}
	}
	if err != nil {
		return errors.Join(err, p.remove(spec))
	}
	return nil
}

func (p *pod) configure(ctx context.Context, spec *Interface) error {
	born, err := p.handle.LinkByName(spec.Name)
	if err != nil {
		return err
	}
	if err := p.setSysctls(p.ns, podSysctls(spec)); err != nil {
		klog.FromContext(ctx).Error(err, "Neighbours may keep stale entries for a while: the kernel was not told to announce the interface", "interface", spec.Name)
	}
	for _, prefix := range spec.Addresses {
		if err := p.handle.AddrAdd(born, nlAddr(prefix)); err != nil {
			return fmt.Errorf("adding address %s: %w", prefix, explain(err, spec.Parent))
		}
	}
	if err := p.handle.LinkSetUp(born); err != nil {
		return fmt.Errorf("setting it up: %w", explain(err, spec.Parent))
	}
	if err := p.addRoutes(born, spec); err != nil {
		return err
	}
	if spec.Kind == KindVeth {
		return p.announce(ctx, born, spec)
	}
	return nil
}

func podSysctls(spec *Interface) []sysctl {
	out := []sysctl{{"ipv4/conf/" + spec.Name + "/arp_notify", "1"}}
	if !hasIPv6(spec.Addresses) {
		return out
	}
	v6 := "ipv6/conf/" + spec.Name + "/"
	return append(out, sysctl{v6 + "disable_ipv6", "0"}, sysctl{v6 + "accept_ra", "0"},
		sysctl{v6 + "accept_dad", "0"}, sysctl{v6 + "ndisc_notify", "1"})
}

// announce repeats the announcement of a veth: the first one, at up, comes
// before the kernel's linkwatch has let the bridge port forward, and is
// dropped there. Setting the MAC, here to what it is, makes the kernel
// announce again (NETDEV_CHANGEADDR).
func (p *pod) announce(ctx context.Context, born netlink.Link, spec *Interface) error {
	deadline := time.Now().Add(portWait)
	for {
		end, err := p.host.LinkByName(spec.HostEnd)
		if err != nil {
			return fmt.Errorf("looking for the host's end: %w", err)
		}
		if end.Attrs().OperState == netlink.OperUp {
			break
		}
		if time.Now().After(deadline) {
			klog.FromContext(ctx).Info("The bridge port does not forward yet; neighbours learn of the interface late", "port", spec.HostEnd, "bridge", spec.Parent)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(portPoll):
		}
	}
	mac, err := net.ParseMAC(spec.MAC)
	if err != nil {
		return err
	}
	if err := p.handle.LinkSetHardwareAddr(born, mac); err != nil {
		return fmt.Errorf("announcing: %w", err)
	}
	return nil
}

// Delete removes an interface from a pod's namespace. What is gone already,
// the whole namespace included, is no error.
func (l *Links) Delete(ctx context.Context, netnsPath string, spec Interface) error {
	leave, err := l.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	p, err := l.openPod(netnsPath)
	if IsGone(err) {
		return l.removeHostEnd(&spec)
	}
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.remove(&spec); err != nil {
		return fmt.Errorf("removing %s: %w", spec.Name, err)
	}
	return nil
}

func (p *pod) remove(spec *Interface) error {
	born, err := p.handle.LinkByName(spec.Name)
	if err == nil {
		err = p.handle.LinkDel(born)
	}
	if err != nil && !IsGone(err) {
		return err
	}
	return p.removeHostEnd(spec)
}

// removeHostEnd is for a veth whose pod's end could not be found.
func (l *Links) removeHostEnd(spec *Interface) error {
	if spec.HostEnd == "" {
		return nil
	}
	end, err := l.host.LinkByName(spec.HostEnd)
	if err == nil {
		err = l.host.LinkDel(end)
	}
	if err != nil && !IsGone(err) {
		return fmt.Errorf("removing host end %s: %w", spec.HostEnd, err)
	}
	return nil
}

// Check says in what an interface differs from spec.
func (l *Links) Check(_ context.Context, netnsPath string, spec Interface) error {
	p, err := l.openPod(netnsPath)
	if err != nil {
		return err
	}
	defer p.close()
	born, err := p.handle.LinkByName(spec.Name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", spec.Name, err)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return p.handle.AddrList(born, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing addresses of %s: %w", spec.Name, err)
	}
	var wrong []string
	attrs := born.Attrs()
	if born.Type() != spec.Kind {
		wrong = append(wrong, fmt.Sprintf("is a %s, not a %s", born.Type(), spec.Kind))
	}
	if attrs.HardwareAddr.String() != strings.ToLower(spec.MAC) {
		wrong = append(wrong, fmt.Sprintf("has MAC %s, not %s", attrs.HardwareAddr, spec.MAC))
	}
	if attrs.MTU != spec.MTU {
		wrong = append(wrong, fmt.Sprintf("has MTU %d, not %d", attrs.MTU, spec.MTU))
	}
	if attrs.RawFlags&unix.IFF_UP == 0 {
		wrong = append(wrong, "is down")
	}
	for _, prefix := range spec.Addresses {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return prefixOf(a.IPNet) == prefix }) {
			wrong = append(wrong, "lacks address "+prefix.String())
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("interface %s %s", spec.Name, strings.Join(wrong, ", "))
	}
	return nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones)
}
