// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
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
	kind, known := makerOf(spec.Kind)
	if !known {
		return fmt.Errorf("interfaces of kind %q are unknown to this version", spec.Kind)
	}
	if err := kind.create(p, &spec); err != nil {
		return fmt.Errorf("making %s %s on %s: %w", spec.Kind, spec.Name, spec.Parent, explain(err, spec.Parent))
	}
	finished := false
	defer func() {
		if !finished {
			err = errors.Join(err, p.remove(&spec))
		}
	}()
	if err := p.configure(ctx, &kind, &spec); err != nil {
		return fmt.Errorf("configuring %s: %w", spec.Name, err)
	}
	finished = true
	return nil
}

func (p *pod) configure(ctx context.Context, kind *maker, spec *Interface) error {
	born, err := p.handle.LinkByName(spec.Name)
	if err != nil {
		return err
	}
	if err := p.setSysctls(p.ns, podSysctls(spec)); err != nil {
		klog.FromContext(ctx).Error(err, "Neighbours may keep stale entries for a while: the kernel was not told to announce the interface", "interface", spec.Name)
	}
	if err := p.addSysctls(spec); err != nil {
		return err
	}
	for _, prefix := range spec.Addresses {
		if err := p.handle.AddrAdd(born, nlAddr(prefix)); err != nil {
			return fmt.Errorf("adding address %s: %w", prefix, explain(err, spec.Parent))
		}
	}
	if err := p.handle.LinkSetUp(born); err != nil {
		return fmt.Errorf("setting it up: %w", explain(err, spec.Parent))
	}
	if err := p.routeBySource(born.Attrs().Index, spec); err != nil {
		return err
	}
	if err := p.addRoutes(born, spec); err != nil {
		return err
	}
	if kind.started != nil {
		return kind.started(ctx, p, born, spec)
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
		return l.clean(&spec)
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
	if err := p.unrouteBySource(spec); err != nil && !IsGone(err) {
		return err
	}
	kind, _ := makerOf(spec.Kind)
	remove := deleteLink
	if kind.remove != nil {
		remove = kind.remove
	}
	if err := remove(p, spec); err != nil && !IsGone(err) {
		return err
	}
	return p.clean(spec)
}

func deleteLink(p *pod, spec *Interface) error {
	born, err := p.handle.LinkByName(spec.Name)
	if err != nil {
		return err
	}
	return p.handle.LinkDel(born)
}

// clean takes back what an interface has in the host's namespace.
func (l *Links) clean(spec *Interface) error {
	kind, _ := makerOf(spec.Kind)
	if kind.clean == nil {
		return nil
	}
	return kind.clean(l, spec)
}
