// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// MTU returns the MTU of a device of the host.
func (l *Links) MTU(device string) (int, error) {
	asked, err := unix.NewIfreq(device)
	if err == nil {
		err = unix.IoctlIfreq(l.socket, unix.SIOCGIFMTU, asked)
	}
	if err != nil {
		return 0, fmt.Errorf("reading the MTU of %s: %w", device, err)
	}
	return int(asked.Uint32()), nil
}

// EnsureParent returns the device that interfaces are to stand on and makes
// what of it is missing: the NIC's tagged device, the bridge over either. A NIC
// is never set up here: down is the administrator's decision.
func (l *Links) EnsureParent(ctx context.Context, spec ParentSpec) (Parent, error) {
	l.parents.Lock()
	defer l.parents.Unlock()
	if parent, ok := l.standingBridge(ctx, spec); ok {
		return parent, nil
	}
	device, err := l.host.LinkByName(spec.NIC)
	if err != nil {
		return Parent{}, fmt.Errorf("looking for NIC %s: %w", spec.NIC, err)
	}
	if spec.Tag != 0 {
		if device, err = l.ensureTagged(ctx, device, spec.Tag); err != nil {
			return Parent{}, fmt.Errorf("making the device of VLAN %d on NIC %s: %w", spec.Tag, spec.NIC, explain(err, spec.NIC))
		}
	}
	if spec.Bridge {
		if device, err = l.ensureBridge(ctx, device); err != nil {
			return Parent{}, err
		}
	}
	a := device.Attrs()
	return Parent{Name: a.Name, MTU: a.MTU, MAC: a.HardwareAddr.String()}, nil
}

// standingBridge is for what nearly all ADDs find: our bridge over a NIC, complete.
func (l *Links) standingBridge(ctx context.Context, spec ParentSpec) (Parent, bool) {
	if spec.Tag != 0 || !spec.Bridge {
		return Parent{}, false
	}
	socket, leave, err := l.changes.enter(ctx)
	if err != nil {
		return Parent{}, false
	}
	defer leave()
	found, err := socket.find([]string{spec.NIC, BridgeName(spec.NIC)})
	if err != nil {
		return Parent{}, false
	}
	nic, nicErr := found[0].link()
	bridge, bridgeErr := found[1].link()
	if nicErr != nil || bridgeErr != nil || bridge.Type() != KindBridge {
		return Parent{}, false
	}
	port, over := nic.Attrs(), bridge.Attrs()
	complete := port.MasterIndex == over.Index && over.MTU == port.MTU && over.RawFlags&unix.IFF_UP != 0
	return Parent{Name: over.Name, MTU: over.MTU, MAC: over.HardwareAddr.String()}, complete
}

// EnsureBridge returns the bridge that a NIC is a port of, or the NIC itself if
// it is a bridge, or makes one.
func (l *Links) EnsureBridge(ctx context.Context, nic string) (string, error) {
	parent, err := l.EnsureParent(ctx, ParentSpec{NIC: nic, Bridge: true})
	return parent.Name, err
}

// ensureTagged finds the device of a tag, whoever made it, or makes it.
func (l *Links) ensureTagged(ctx context.Context, nic netlink.Link, tag int) (netlink.Link, error) {
	base, err := l.tagBase(nic)
	if err != nil {
		return nil, err
	}
	name := TaggedName(base.Attrs().Name, tag)
	tagged, err := l.host.LinkByName(name)
	if err != nil || !isTagged(tagged, base, tag) {
		made := &netlink.Vlan{
			LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: base.Attrs().Index, MTU: base.Attrs().MTU, Group: linkGroup, TxQLen: -1},
			VlanId:    tag, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q,
		}
		switch err := l.host.LinkAdd(made); {
		case isExists(err):
			return l.findTagged(base, tag)
		case err != nil:
			return nil, err
		}
		l.tuneDevice(ctx, name)
		if tagged, err = l.host.LinkByName(name); err != nil {
			return nil, err
		}
		klog.FromContext(ctx).Info("Made a tagged device", "device", name, "nic", base.Attrs().Name, "tag", tag)
	}
	if tagged.Attrs().Group != linkGroup {
		return tagged, nil
	}
	if err := l.followMTU(tagged, base); err != nil {
		return nil, err
	}
	return tagged, l.host.LinkSetUp(tagged)
}

// tagBase is what tags of a NIC are taken off: the NIC, but of a port of a
// bridge that is not ours the bridge. There the administrator's own tagged
// devices are, and one on the port would take their frames away.
func (l *Links) tagBase(nic netlink.Link) (netlink.Link, error) {
	index := nic.Attrs().MasterIndex
	if index == 0 {
		return nic, nil
	}
	master, err := l.host.LinkByIndex(index)
	if err != nil {
		return nil, fmt.Errorf("looking for the master of NIC %s: %w", nic.Attrs().Name, err)
	}
	switch {
	case master.Type() != KindBridge:
		return nil, fmt.Errorf("NIC %s is a port of %s, a %s: map that one instead", nic.Attrs().Name, master.Attrs().Name, master.Type())
	case Own(master.Attrs().Name):
		return nic, nil
	}
	return master, nil
}

// findTagged looks for an administrator's device of another name. The kernel
// refuses a second one for a tag.
func (l *Links) findTagged(base netlink.Link, tag int) (netlink.Link, error) {
	all, err := dump(l.host.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	for _, candidate := range all {
		if isTagged(candidate, base, tag) {
			return candidate, nil
		}
	}
	return nil, fmt.Errorf("another link has the name %s already: rename or remove it", TaggedName(base.Attrs().Name, tag))
}

func isTagged(l, base netlink.Link, tag int) bool {
	return tagOf(l) == tag && l.Attrs().ParentIndex == base.Attrs().Index
}

// tagOf returns a link's 802.1Q tag, or 0; those of 802.1ad are others.
func tagOf(l netlink.Link) int {
	vlan, ok := l.(*netlink.Vlan)
	if !ok || vlan.VlanProtocol == netlink.VLAN_PROTOCOL_8021AD {
		return 0
	}
	return vlan.VlanId
}

// ensureBridge returns the bridge that a device is a port of, or the device
// itself if it is a bridge, or makes one.
func (l *Links) ensureBridge(ctx context.Context, port netlink.Link) (netlink.Link, error) {
	if port.Type() == KindBridge {
		return port, nil
	}
	nic := port.Attrs()
	if index := nic.MasterIndex; index != 0 {
		master, err := l.host.LinkByIndex(index)
		if err != nil {
			return nil, fmt.Errorf("looking for the master of NIC %s: %w", nic.Name, err)
		}
		if master.Type() != KindBridge {
			return nil, fmt.Errorf("NIC %s is a port of %s, a %s: map that one instead", nic.Name, master.Attrs().Name, master.Type())
		}
		if Own(master.Attrs().Name) {
			if err := l.followMTU(master, port); err != nil {
				return nil, err
			}
		}
		return master, nil
	}
	bridge, err := l.makeBridge(ctx, port)
	if err != nil {
		return nil, fmt.Errorf("making the bridge of NIC %s: %w", nic.Name, explain(err, nic.Name))
	}
	return bridge, nil
}

// makeBridge makes a bridge without STP. Its MAC is the NIC's: left to itself,
// the kernel would take another one whenever a port comes or goes.
func (l *Links) makeBridge(ctx context.Context, port netlink.Link) (_ netlink.Link, err error) {
	nic := port.Attrs()
	name := BridgeName(nic.Name)
	bridge, err := l.host.LinkByName(name)
	if err == nil {
		return bridge, errors.Join(l.finishBridge(port, bridge), l.followMTU(bridge, port))
	}
	made := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: nic.MTU, HardwareAddr: nic.HardwareAddr, TxQLen: -1}}
	if err := l.host.LinkAdd(made); err != nil {
		return nil, err
	}
	finished := false
	defer func() {
		if !finished {
			err = errors.Join(err, l.host.LinkDel(made))
		}
	}()
	if bridge, err = l.host.LinkByName(name); err != nil {
		return nil, err
	}
	l.tuneDevice(ctx, name)
	if err := l.finishBridge(port, bridge); err != nil {
		return nil, err
	}
	finished = true
	klog.FromContext(ctx).Info("Made a bridge", "bridge", name, "nic", nic.Name)
	return bridge, nil
}

func (l *Links) finishBridge(port, bridge netlink.Link) error {
	if err := l.host.LinkSetMaster(port, bridge); err != nil {
		return err
	}
	return l.host.LinkSetUp(bridge)
}

// followMTU gives a device that netplane made the MTU of what is below it.
func (l *Links) followMTU(device, below netlink.Link) error {
	mtu := below.Attrs().MTU
	if device.Attrs().MTU == mtu {
		return nil
	}
	if err := l.host.LinkSetMTU(device, mtu); err != nil {
		return fmt.Errorf("giving %s the MTU %d of %s: %w", device.Attrs().Name, mtu, below.Attrs().Name, err)
	}
	device.Attrs().MTU = mtu
	return nil
}

// PruneParents removes the bridges and tagged devices that netplane made, but
// for those in use and what they stand on. A NIC that leaves a bridge stays up.
// What an administrator made, or connected something to, is left alone.
func (l *Links) PruneParents(ctx context.Context, used []string) error {
	l.parents.Lock()
	defer l.parents.Unlock()
	all, err := dump(l.host.LinkList)
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	var failed []error
	for _, gone := range idle(all, used) {
		if err := l.host.LinkDel(gone); err != nil && !IsGone(err) {
			failed = append(failed, fmt.Errorf("removing %s: %w", gone.Attrs().Name, err))
			continue
		}
		klog.FromContext(ctx).Info("Removed what no pod stands on any more", "device", gone.Attrs().Name, "kind", gone.Type())
	}
	return errors.Join(failed...)
}

// idle picks, bridges first, what PruneParents removes.
func idle(all []netlink.Link, used []string) []netlink.Link {
	busy := map[int]bool{} // by index: in use, or below what is
	for _, l := range all {
		if slices.Contains(used, l.Attrs().Name) {
			busy[l.Attrs().Index] = true
		}
	}
	var out []netlink.Link
	for _, l := range all {
		a := l.Attrs()
		if l.Type() == KindBridge && strings.HasPrefix(a.Name, bridgePrefix) && !busy[a.Index] && onlyNIC(l, all) {
			out = append(out, l)
		}
	}
	removed := len(out)
	for _, l := range all {
		a := l.Attrs()
		if tagOf(l) == 0 || a.Group != linkGroup || busy[a.Index] || carries(l, all) {
			continue
		}
		port := a.MasterIndex != 0 && !slices.ContainsFunc(out[:removed], func(b netlink.Link) bool { return b.Attrs().Index == a.MasterIndex })
		if !port {
			out = append(out, l)
		}
	}
	return out
}

// onlyNIC says whether nothing is connected to one of our bridges but the NIC
// that it was made for, if that.
func onlyNIC(bridge netlink.Link, all []netlink.Link) bool {
	for _, l := range all {
		a := l.Attrs()
		if a.MasterIndex == bridge.Attrs().Index && BridgeName(a.Name) != bridge.Attrs().Name {
			return false
		}
	}
	return !carries(bridge, all)
}

// carries says whether another link of the host stands on one.
func carries(below netlink.Link, all []netlink.Link) bool {
	return slices.ContainsFunc(all, func(l netlink.Link) bool {
		return stacked(l.Type()) && l.Attrs().ParentIndex == below.Attrs().Index && l.Attrs().NetNsID < 0
	})
}
