// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// maker knows how a pod's interfaces of one kind come and go. What all kinds
// have in common (addresses, routes, sysctls, up) is done around it.
type maker struct {
	// create makes the link in the pod's namespace, down, under its final
	// name, or nothing. Whatever it needs of the parent it asks for itself,
	// see pod.parent.
	create func(p *pod, spec *Interface) error
	// started runs last, when the interface is up; nil does nothing.
	started func(ctx context.Context, p *pod, born netlink.Link, spec *Interface) error
	// remove takes the link out of the pod's namespace; what is gone is no
	// error. nil deletes it.
	remove func(p *pod, spec *Interface) error
	// clean takes back what stays in the host's namespace, also when the pod's
	// is gone already; nil: nothing does.
	clean func(l *Links, spec *Interface) error
	// check says in what the link differs, beyond kind, MAC, MTU, addresses
	// and state; nil: in nothing.
	check func(p *pod, born netlink.Link, spec *Interface) []string
}

// makerOf is the table of kinds. The second result is false for a kind that
// this version does not know; such an interface, of a record that another
// version wrote, can still be removed.
func makerOf(kind string) (maker, bool) {
	switch kind {
	case KindMacvlan:
		return maker{create: createMacvlan, check: checkMacvlan}, true
	case KindIPVLAN:
		return maker{create: createIPVLAN, check: checkIPVLAN}, true
	case KindVeth:
		return maker{create: createVeth, started: announceVeth, clean: cleanVeth, check: checkVeth}, true
	case KindHostDevice:
		return maker{create: moveIn, started: announceNIC, remove: takeOut, clean: bringHome}, true
	}
	return maker{clean: removeHostEnd}, false
}

// parent returns the device of the host that an interface stands on.
func (p *pod) parent(spec *Interface) (netlink.Link, error) {
	parent, err := p.host.LinkByName(spec.Parent)
	if err != nil {
		return nil, err
	}
	if limit := parent.Attrs().MTU; spec.MTU > limit {
		return nil, fmt.Errorf("mtu %d is larger than the %d of %s", spec.MTU, limit, spec.Parent)
	}
	return parent, nil
}

// addInside has a link of the host's namespace be born in the pod's. The
// library looks a new link up in the host's namespace and so fills in the index
// of another link of that name: nothing that LinkAdd leaves in its argument is
// used.
func (p *pod) addInside(spec *Interface, parent netlink.Link, mac net.HardwareAddr, shape func(netlink.LinkAttrs) netlink.Link) error {
	attrs := netlink.LinkAttrs{Name: spec.Name, ParentIndex: parent.Attrs().Index, MTU: spec.MTU, HardwareAddr: mac, TxQLen: -1, Namespace: netlink.NsFd(p.ns)}
	err := p.host.LinkAdd(shape(attrs))
	if !isExists(err) {
		return err
	}
	// Older kernels look the name up in the host's namespace too, where
	// eth0 exists: be born under another name and take the right one at once.
	attrs.Name = hostEndPrefix + digest(spec.Name, spec.MAC)[:hashDigits]
	if err := p.host.LinkAdd(shape(attrs)); err != nil {
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
