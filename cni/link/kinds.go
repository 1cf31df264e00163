// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// maker knows how a pod's interfaces of one kind come and go. What all kinds
// have in common (addresses, routes, sysctls, up) is done around it.
type maker struct {
	// birth asks, by a message to the host's namespace, for the link in the pod's,
	// down, under its final name. The first request makes it; those that follow may
	// fail. Whatever it needs of the parent it asks for itself, see pod.parent.
	birth func(p *pod, spec *Interface) ([]*request, error)
	// create does so for a kind without birth: it makes the link or nothing.
	create func(p *pod, spec *Interface) error
	// connect runs after birth, while the pod's end is down; nil does nothing.
	connect func(p *pod, spec *Interface) error
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
		return maker{birth: bearMacvlan, check: checkMacvlan}, true
	case KindIPVLAN:
		return maker{birth: bearIPVLAN, check: checkIPVLAN}, true
	case KindVeth:
		return maker{birth: bearVeth, connect: connectVeth, clean: cleanVeth, check: checkVeth}, true
	case KindHostDevice:
		return maker{create: moveIn, remove: takeOut, clean: bringHome}, true
	}
	return maker{clean: removeHostEnd}, false
}

// parent returns the device of the host that an interface stands on.
func (p *pod) parent(spec *Interface) (netlink.Link, error) {
	found, known := p.parents[spec.Parent]
	if !known {
		return nil, fmt.Errorf("%s was not looked for", spec.Parent)
	}
	parent, err := found.link()
	if err != nil {
		return nil, err
	}
	if limit := parent.Attrs().MTU; spec.MTU > limit {
		return nil, fmt.Errorf("mtu %d is larger than the %d of %s", spec.MTU, limit, spec.Parent)
	}
	return parent, nil
}
