// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// Input is all that the node's inventory depends on.
type Input struct {
	// Map is the node's own; nil lets nodeInterfaces decide.
	Map *Map
	// NodeLabels are what nodeSelectors look at.
	NodeLabels map[string]string
	// PhysicalNetworks and Networks in any order.
	PhysicalNetworks []v1alpha1.PhysicalNetwork
	Networks         []v1alpha1.Network
	// Devices are all links of the host's namespace.
	Devices []link.Device
	// InPods are the NICs that pods have for themselves, Parents the links of
	// the host that pods' interfaces stand on.
	InPods  []link.Device
	Parents []string
	// Unavailable are link kinds that the kernel cannot make.
	Unavailable map[string]bool
	// NotInstalled are Networks whose plugin is not built in and that the node
	// cannot run, and why.
	NotInstalled map[string]string
	// Uninstalled: the runtime does not call netplane on this node any more.
	Uninstalled bool
	// BypassedBy is the CNI configuration that the runtime takes instead of ours.
	BypassedBy string
}

// Resolve decides which NICs back which physical networks, in which mode each
// NIC works and which Networks the node refuses. It is a pure function and
// does not depend on the order of its inputs.
func Resolve(in *Input) *Snapshot {
	with := *in
	with.Devices = withPods(in.Devices, in.InPods)
	in = &with
	devices := make(map[string]*link.Device, len(in.Devices))
	for i := range in.Devices {
		devices[in.Devices[i].Name] = &in.Devices[i]
	}
	nics, warnings := mapping(in)
	s := &Snapshot{
		warnings:  warnings,
		parents:   make(map[string][]string, len(nics)),
		uses:      map[place]*use{},
		exclusive: map[string][]*link.Device{},
		refused:   map[string]v1alpha1.RefusedNetwork{},
		tunnels:   map[string]link.Tunnel{},
	}
	for _, name := range slices.Sorted(maps.Keys(nics)) {
		s.physicalNetworks = append(s.physicalNetworks, physicalStatus(name, nics[name], devices))
	}
	s.interfaces = interfaces(in.Devices, nics)
	resolveExclusive(s, in, devices)
	resolveModes(s, in, devices)
	refuseDelegates(s, in)
	resolveTunnels(s, in, devices)
	switch {
	case in.Uninstalled:
		refuseAll(s, in.Networks, v1alpha1.ReasonUninstalled,
			"the node has its own CNI configuration back: roll the agent out without --uninstall, and it serves again")
	case in.BypassedBy != "":
		refuseAll(s, in.Networks, v1alpha1.ReasonBypassed, fmt.Sprintf("the node's runtime takes the CNI configuration %s, which sorts before netplane's "+
			"and does not call it: give the file a name that sorts after 00-netplane.conflist, or, if it is Multus's, have it take that file as its clusterNetwork", in.BypassedBy))
	}
	return s
}

// refuseAll keeps new pods away: they would start without their networks. What
// pods have already is untouched.
func refuseAll(s *Snapshot, networks []v1alpha1.Network, reason, message string) {
	for i := range networks {
		name := networks[i].Name
		s.refused[name] = v1alpha1.RefusedNetwork{Network: name, Reason: reason, Message: message}
	}
}

// mapping returns the NICs of each physical network that the node is mapped
// to: from its own map file, or else from the PhysicalNetworks. There the
// older PhysicalNetwork keeps a NIC that two of them select.
func mapping(in *Input) (nics map[string][]string, warnings []string) {
	if in.Map != nil {
		return in.Map.nics(), nil
	}
	nics = map[string][]string{}
	taken := map[string]string{}
	physical := slices.Clone(in.PhysicalNetworks)
	slices.SortFunc(physical, func(a, b v1alpha1.PhysicalNetwork) int { return older(&a.ObjectMeta, &b.ObjectMeta) })
	for i := range physical {
		p := &physical[i]
		chosen, ok, err := selectNICs(p, in)
		if err != nil {
			warnings = append(warnings, err.Error())
		}
		if !ok {
			continue
		}
		free := chosen[:0:0]
		for _, nic := range chosen {
			if owner, ok := taken[nic]; ok {
				warnings = append(warnings, fmt.Sprintf("NIC %s is selected by PhysicalNetworks %s and %s: %s, the older, keeps it", nic, owner, p.Name, owner))
				continue
			}
			taken[nic] = p.Name
			free = append(free, nic)
		}
		nics[p.Name] = free
	}
	return nics, warnings
}

// selectNICs applies the first entry of nodeInterfaces whose nodeSelector fits
// the node; ok is false if none does.
func selectNICs(p *v1alpha1.PhysicalNetwork, in *Input) (nics []string, ok bool, err error) {
	for i := range p.Spec.NodeInterfaces {
		entry := &p.Spec.NodeInterfaces[i]
		selector := labels.Everything()
		if entry.NodeSelector != nil {
			if selector, err = metav1.LabelSelectorAsSelector(entry.NodeSelector); err != nil {
				return nil, false, fmt.Errorf("PhysicalNetwork %s: nodeInterfaces entry %d: reading nodeSelector: %w", p.Name, i+1, err)
			}
		}
		if selector.Matches(labels.Set(in.NodeLabels)) {
			return matchDevices(&entry.Interface, in.Devices), true, nil
		}
	}
	return nil, false, nil
}

func matchDevices(want *v1alpha1.InterfaceSelector, devices []link.Device) []string {
	if want.Name != "" {
		return []string{want.Name}
	}
	var out []string
	for i := range devices {
		d := &devices[i]
		if selectable(d) && matches(want, d) {
			out = append(out, d.Name)
		}
	}
	slices.Sort(out)
	return out
}

func matches(want *v1alpha1.InterfaceSelector, d *link.Device) bool {
	switch {
	case want.MACAddress != "":
		return strings.EqualFold(want.MACAddress, d.PermMAC.String())
	case want.PCIAddress != "":
		return want.PCIAddress == d.Sysfs.PCIAddress
	case want.Driver != "":
		return want.Driver == driver(d)
	}
	return false
}

// driver is what ethtool -i shows: for a link without hardware, its kind.
func driver(d *link.Device) string {
	if d.Sysfs.Driver == "" && !d.Sysfs.Physical && d.Kind != link.KindDevice {
		return d.Kind
	}
	return d.Sysfs.Driver
}

func physicalStatus(name string, nics []string, devices map[string]*link.Device) v1alpha1.NodePhysicalNetwork {
	out := v1alpha1.NodePhysicalNetwork{Name: name, Interfaces: nics, Reason: v1alpha1.ReasonInterfaceNotFound}
	for _, nic := range nics {
		d, ok := devices[nic]
		switch {
		case !ok:
		case d.Up:
			out.Ready, out.Reason = true, v1alpha1.ReasonInterfaceUp
			return out
		case d.InPod:
			out.Ready, out.Reason = true, v1alpha1.ReasonInterfaceInPod
		case !out.Ready:
			out.Reason = v1alpha1.ReasonInterfaceDown
		}
	}
	return out
}

// upFirst leaves out NICs that are not there, and keeps the mapping's order
// among those that are equally well.
func upFirst(nics []string, devices map[string]*link.Device) []string {
	var up, down []string
	for _, nic := range nics {
		switch d, ok := devices[nic]; {
		case !ok:
		case d.Up:
			up = append(up, nic)
		default:
			down = append(down, nic)
		}
	}
	return append(up, down...)
}

func interfaces(devices []link.Device, nics map[string][]string) []v1alpha1.NodeInterfaceStatus {
	named := map[string]bool{}
	for _, names := range nics {
		for _, nic := range names {
			named[nic] = true
		}
	}
	var out []v1alpha1.NodeInterfaceStatus
	for i := range devices {
		if d := &devices[i]; d.InPod || isNIC(d) || named[d.Name] {
			out = append(out, interfaceStatus(d))
		}
	}
	slices.SortFunc(out, func(a, b v1alpha1.NodeInterfaceStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func interfaceStatus(d *link.Device) v1alpha1.NodeInterfaceStatus {
	out := v1alpha1.NodeInterfaceStatus{
		Name:       d.Name,
		MAC:        d.MAC.String(),
		MTU:        int32(d.MTU),
		SpeedMbps:  d.Sysfs.SpeedMbps,
		NUMANode:   d.Sysfs.NUMANode,
		PCIAddress: d.Sysfs.PCIAddress,
		Driver:     driver(d),
		State:      v1alpha1.OperStateDown,
	}
	switch {
	case d.InPod:
		out.State, out.InUse = "", true
	case d.Up:
		out.State = v1alpha1.OperStateUp
	}
	for _, a := range d.Addresses {
		out.Addresses = append(out.Addresses, a.String())
	}
	return out
}

// older orders by age, then by name, so that every node decides alike.
func older(a, b *metav1.ObjectMeta) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
}
