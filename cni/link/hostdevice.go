// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// KindHostDevice is an interface that is a NIC of the host itself. It is no
// kind of the kernel's: the link keeps the one that it has, NIC.Kind.
const KindHostDevice = "host-device"

// NIC is a NIC of the host as it was before a pod got it: what it is to be
// again when it comes back.
type NIC struct {
	Name string `json:"name"`
	// Index in the host's namespace.
	Index int `json:"index"`
	// Kind is IFLA_INFO_KIND, or "device" for one with a driver of its own.
	Kind string `json:"kind"`
	MAC  string `json:"mac"`
	// PermMAC is the address burnt in; empty where there is none.
	PermMAC string `json:"permMAC,omitempty"`
	MTU     int    `json:"mtu"`
	// Up: administratively.
	Up bool `json:"up"`
	// Alias is what an administrator wrote there (ip link set alias).
	Alias string `json:"alias,omitempty"`
	// Hardware is what sysfs told, which it does only while the NIC is there.
	Hardware Hardware `json:"hardware"`
}

// Device is the NIC as the inventory lists it while it is inside a pod. Nobody
// sees there whether it is up.
func (n *NIC) Device() Device {
	device := Device{Name: n.Name, Index: n.Index, Kind: n.Kind, MTU: n.MTU, Ethernet: true, Sysfs: n.Hardware, InPod: true}
	device.MAC, _ = net.ParseMAC(n.MAC)
	device.PermMAC = device.MAC
	if mac, err := net.ParseMAC(n.PermMAC); err == nil {
		device.PermMAC = mac
	}
	return device
}

// Texts of a NIC's alias. It goes with the NIC through all namespaces and
// names, also when the kernel itself throws it out of one that ends.
const (
	aliasAway    = "netplane: in a pod, comes back as "
	aliasWaiting = "netplane: waits for its name "
	aliasUp      = ", up"
)

func (n *NIC) aliasAway() string { return aliasAway + n.Name }

func (n *NIC) aliasWaiting() string {
	if n.Up {
		return aliasWaiting + n.Name + aliasUp
	}
	return aliasWaiting + n.Name
}

// parseWaiting reads aliasWaiting.
func parseWaiting(alias string) (name string, up, ok bool) {
	rest, ok := strings.CutPrefix(alias, aliasWaiting)
	name, up = strings.CutSuffix(rest, aliasUp)
	return name, up, ok
}

// travelName is the NIC's in the host on its way into a pod and back, and for
// as long as another link has its own.
func (n *NIC) travelName() string { return travelPrefix + digest(n.Name, n.MAC)[:hashDigits] }

// NIC describes a NIC of the host that is to be a pod's alone. It refuses one
// that the host uses, or that is down.
func (l *Links) NIC(name string) (NIC, error) {
	found, err := l.host.LinkByName(name)
	if err != nil {
		return NIC{}, fmt.Errorf("looking for NIC %s: %w", name, err)
	}
	a := found.Attrs()
	if a.RawFlags&unix.IFF_UP == 0 || a.RawFlags&unix.IFF_RUNNING == 0 {
		return NIC{}, fmt.Errorf("NIC %s is down or without carrier", name)
	}
	if err := l.idle(found); err != nil {
		return NIC{}, err
	}
	nic := NIC{Name: a.Name, Index: a.Index, Kind: found.Type(), MAC: a.HardwareAddr.String(), MTU: a.MTU, Up: true, Alias: a.Alias}
	if len(a.PermHWAddr) > 0 && !bytes.Equal(a.PermHWAddr, make([]byte, len(a.PermHWAddr))) {
		nic.PermMAC = a.PermHWAddr.String()
	}
	return nic, nil
}

// idle refuses a NIC that anything of the host's stands on: it would be cut off.
func (l *Links) idle(nic netlink.Link) error {
	a := nic.Attrs()
	if a.MasterIndex != 0 {
		return fmt.Errorf("NIC %s is a port of another link of the host", a.Name)
	}
	if nic.Type() == KindBridge || a.RawFlags&unix.IFF_LOOPBACK != 0 {
		return fmt.Errorf("%s is no NIC", a.Name)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return l.host.AddrList(nic, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing addresses of NIC %s: %w", a.Name, err)
	}
	for i := range addrs {
		if addrs[i].Scope != unix.RT_SCOPE_LINK && addrs[i].Scope != unix.RT_SCOPE_HOST {
			return fmt.Errorf("NIC %s carries the host's address %s", a.Name, addrs[i].IPNet)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) { return l.host.RouteList(nic, family) })
		if err != nil {
			return fmt.Errorf("listing routes of NIC %s: %w", a.Name, err)
		}
		routed := map[int]bool{}
		for i := range routes {
			markDefault(&routes[i], routed)
		}
		if routed[a.Index] {
			return fmt.Errorf("NIC %s carries the host's default route", a.Name)
		}
	}
	links, err := dump(l.host.LinkList)
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	for _, other := range links {
		// Of a link whose parent is in another namespace the index counts there.
		if b := other.Attrs(); stacked(other.Type()) && b.ParentIndex == a.Index && b.NetNsID < 0 {
			return fmt.Errorf("NIC %s carries the host's %s interface %s", a.Name, other.Type(), b.Name)
		}
	}
	return nil
}

// moveIn moves the NIC into the pod, down and under the name asked for. Before
// anything changes the NIC bears the mark by which it is found again. After an
// error it is where it was.
func moveIn(p *pod, spec *Interface) error {
	nic := spec.NIC
	if nic == nil {
		return errors.New("no NIC was chosen")
	}
	found, err := p.host.LinkByName(nic.Name)
	if err != nil {
		return err
	}
	if found.Attrs().Index != nic.Index || found.Type() != nic.Kind {
		return fmt.Errorf("another link is called %s since NIC %s was chosen", nic.Name, nic.Name)
	}
	if err := p.idle(found); err != nil {
		return err
	}
	if err := p.host.LinkSetAlias(found, nic.aliasAway()); err != nil {
		return fmt.Errorf("marking the NIC: %w", err)
	}
	if err := p.travelIn(found, spec); err != nil {
		return errors.Join(err, takeOut(p, spec), bringHome(p.Links, spec))
	}
	return nil
}

func (p *pod) travelIn(found netlink.Link, spec *Interface) error {
	travel := spec.NIC.travelName()
	if err := p.host.LinkSetDown(found); err != nil {
		return err
	}
	// The pod may have an interface of the NIC's name: a name of nobody's on the way.
	if err := p.host.LinkSetName(found, travel); err != nil {
		return fmt.Errorf("renaming it to %s: %w", travel, err)
	}
	if err := p.host.LinkSetNsFd(found, int(p.ns)); err != nil {
		return fmt.Errorf("moving it into the pod: %w", err)
	}
	born, err := p.handle.LinkByName(travel)
	if err != nil {
		return err
	}
	if err := p.handle.LinkSetName(born, spec.Name); err != nil {
		return fmt.Errorf("renaming it to %s: %w", spec.Name, err)
	}
	return shape(p.handle, born, spec.MAC, spec.MTU)
}

// linkKind is the kernel's kind of the interface.
func (i *Interface) linkKind() string {
	if i.NIC != nil {
		return i.NIC.Kind
	}
	return i.Kind
}

// shape gives a link MAC and MTU, where it has others.
func shape(handle *netlink.Handle, nic netlink.Link, mac string, mtu int) error {
	want, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	if !bytes.Equal(nic.Attrs().HardwareAddr, want) {
		if err := handle.LinkSetHardwareAddr(nic, want); err != nil {
			return fmt.Errorf("setting MAC %s: %w", mac, err)
		}
	}
	if nic.Attrs().MTU != mtu {
		if err := handle.LinkSetMTU(nic, mtu); err != nil {
			return fmt.Errorf("setting MTU %d: %w", mtu, err)
		}
	}
	return nil
}

// takeOut moves the NIC from the pod to the host, wherever in the pod it is.
func takeOut(p *pod, spec *Interface) error {
	nic := spec.NIC
	if nic == nil {
		return nil // a record that is not ours
	}
	inside, err := nic.find(p.handle)
	if err != nil {
		return fmt.Errorf("looking for NIC %s in the pod: %w", nic.Name, err)
	}
	if inside == nil {
		return nil
	}
	if err := p.travelBack(inside, nic); err != nil {
		return fmt.Errorf("moving NIC %s back to the host: %w", nic.Name, err)
	}
	return nil
}

// bringHome makes a NIC in the host again what it was: after takeOut, on its
// way, or where the kernel put it when the pod's namespace ended
// (default_device_exit_net in net/core/dev.c: down, under its name there, or
// dev<index> if the host has that name). Links without hardware end with the
// namespace.
func bringHome(l *Links, spec *Interface) error {
	nic := spec.NIC
	if nic == nil {
		return nil
	}
	home, err := nic.find(l.host)
	if err != nil {
		return fmt.Errorf("looking for NIC %s in the host: %w", nic.Name, err)
	}
	if home == nil { // it has come back before, or is gone
		return nil
	}
	if err := l.settle(home, nic); err != nil {
		return fmt.Errorf("making NIC %s what it was: %w", nic.Name, err)
	}
	return nil
}

// find looks for the NIC by what a pod cannot give another link: the address
// burnt in. One without is known by its mark.
func (n *NIC) find(handle *netlink.Handle) (netlink.Link, error) {
	links, err := dump(handle.LinkList)
	if err != nil {
		return nil, err
	}
	var unmarked []netlink.Link
	for _, candidate := range links {
		a := candidate.Attrs()
		if candidate.Type() != n.Kind || n.PermMAC != "" && a.PermHWAddr.String() != n.PermMAC {
			continue
		}
		if a.Alias == n.aliasAway() {
			return candidate, nil
		}
		if n.PermMAC != "" {
			unmarked = append(unmarked, candidate)
		}
	}
	if len(unmarked) != 1 { // two functions of one card may share the address burnt in
		return nil, nil
	}
	return unmarked[0], nil
}

func (p *pod) travelBack(inside netlink.Link, nic *NIC) error {
	if err := p.handle.LinkSetDown(inside); err != nil {
		return err
	}
	// A pod that may do so can have taken the mark away.
	if err := p.handle.LinkSetAlias(inside, nic.aliasAway()); err != nil {
		return err
	}
	if travel := nic.travelName(); inside.Attrs().Name != travel {
		if err := p.handle.LinkSetName(inside, travel); err != nil {
			return err
		}
	}
	return p.handle.LinkSetNsFd(inside, int(p.Links.ns))
}

// settle gives a NIC in the host back what it had. If another link has its
// name by now, it waits for that under one that is nobody's, see Mend.
func (l *Links) settle(home netlink.Link, nic *NIC) error {
	if err := shape(l.host, home, nic.MAC, nic.MTU); err != nil {
		return err
	}
	alias := nic.Alias
	if name := home.Attrs().Name; name != nic.Name {
		if err := l.host.LinkSetDown(home); err != nil {
			return err
		}
		err := l.host.LinkSetName(home, nic.Name)
		if isExists(err) {
			alias = nic.aliasWaiting()
			klog.Background().Error(err, "A NIC has come back from a pod, but another link has its name: it waits under another one until that link is removed or renamed",
				"nic", nic.Name, "name", nic.travelName())
			err = nil
			if name != nic.travelName() {
				err = l.host.LinkSetName(home, nic.travelName())
			}
		}
		if err != nil {
			return fmt.Errorf("naming it: %w", err)
		}
	}
	if home.Attrs().Alias != alias {
		if err := l.host.LinkSetAlias(home, alias); err != nil {
			return fmt.Errorf("restoring its alias: %w", err)
		}
	}
	if !nic.Up || alias != nic.Alias {
		return nil
	}
	return l.host.LinkSetUp(home)
}

// Mend gives NICs that came back from pods their names, where another link had
// them then and has them no more.
func (l *Links) Mend(ctx context.Context) error {
	links, err := dump(l.host.LinkList)
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	var failed []error
	for _, nic := range links {
		name, up, waits := parseWaiting(nic.Attrs().Alias)
		if !waits || !strings.HasPrefix(nic.Attrs().Name, travelPrefix) {
			continue
		}
		err := l.host.LinkSetName(nic, name)
		if isExists(err) {
			continue
		}
		if err == nil {
			err = l.host.LinkSetAlias(nic, "")
		}
		if err == nil && up {
			err = l.host.LinkSetUp(nic)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("giving NIC %s its name back: %w", name, err))
			continue
		}
		klog.FromContext(ctx).Info("A NIC that came back from a pod has its name again", "nic", name)
	}
	return errors.Join(failed...)
}
