// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Fake keeps links in memory, for tests. String renders them as `ip` would,
// one line each.
type Fake struct {
	mu sync.Mutex
	// lines is what exists, by "namespace/device" or "namespace/device/thing".
	lines map[string]string
	nics  map[string]int
	// forwards are the entries of vxlan devices, by the key of their line.
	forwards  map[string]Forward
	announced []string
	// Hosts are the addresses of hosts behind the NICs and their MACs, for Probe.
	Hosts map[netip.Addr]string
	// FailOn makes an operation fail when it returns an error. The operation
	// is told as "add eth0", "unmake eth0", "announce eth0", "delete eth0", "tag eth1 100", "bridge eth1",
	// "prune", "path nps...", "masquerade", "probe eth1 10.10.0.5", "nic eth2".
	FailOn func(operation string) error
}

// NewFake makes a host with NICs of the given MTUs.
func NewFake(nics map[string]int) *Fake {
	return &Fake{lines: map[string]string{}, nics: maps.Clone(nics)}
}

// String renders all links, addresses, routes and rules, sorted.
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out strings.Builder
	for _, key := range slices.Sorted(maps.Keys(f.lines)) {
		out.WriteString(f.lines[key] + "\n")
	}
	return out.String()
}

func (f *Fake) fails(format string, args ...any) error {
	if f.FailOn == nil {
		return nil
	}
	return f.FailOn(fmt.Sprintf(format, args...))
}

// Add makes interfaces as Links does.
func (f *Fake) Add(_ context.Context, netns string, specs ...Interface) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range specs {
		if err := f.add(netns, &specs[i]); err != nil {
			err = fmt.Errorf("interface %s: %w", specs[i].Name, err)
			var left []string
			for j := range i {
				if failed := f.fails("unmake %s", specs[j].Name); failed != nil {
					left, err = append(left, specs[j].Name), errors.Join(err, failed)
					continue
				}
				f.remove(netns, &specs[j])
			}
			if len(left) > 0 {
				return &LeftError{Names: left, Err: err}
			}
			return err
		}
	}
	return nil
}

func (f *Fake) add(netns string, spec *Interface) error {
	if err := f.fails("add %s", spec.Name); err != nil {
		return err
	}
	key := netns + "/" + spec.Name
	if _, ok := f.lines[key]; ok {
		return fmt.Errorf("the pod has an interface %s already", spec.Name)
	}
	line := fmt.Sprintf("%s: %s %s on %s mac %s mtu %d", netns, spec.Name, spec.Kind, spec.Parent, spec.MAC, spec.MTU)
	if spec.Mode != "" {
		line += " mode " + spec.Mode
	}
	for _, a := range spec.Addresses {
		line += " " + a.String()
	}
	for _, r := range spec.Routes {
		line += " route " + r.To.String()
		if r.Via.IsValid() {
			line += " via " + r.Via.String()
		}
	}
	if spec.Source != nil {
		line += " source"
		for _, r := range spec.Source.Routes {
			line += " " + strings.TrimPrefix(r.String(), "route to ")
		}
		if spec.Source.Beside != "" {
			line += " beside " + spec.Source.Beside
		}
	}
	for _, s := range spec.Sysctls {
		line += " " + s.Name + "=" + s.Value
	}
	if spec.TakeDefault {
		line += " take-default"
	}
	for _, k := range spec.Keep {
		line += " keep " + k.String()
	}
	f.lines[key] = line
	if spec.NIC != nil {
		if _, ok := f.nics[spec.NIC.Name]; !ok {
			delete(f.lines, key)
			return fmt.Errorf("looking for NIC %s: not found", spec.NIC.Name)
		}
		delete(f.nics, spec.NIC.Name)
	}
	if spec.HostEnd != "" {
		line := fmt.Sprintf("host: %s veth master %s", spec.HostEnd, spec.Parent)
		if spec.Isolated {
			line += " isolated"
		}
		f.lines["host/"+spec.HostEnd] = line
	}
	if spec.SpoofCheck {
		f.lines["guard/"+spec.HostEnd] = guardLine(spec)
	}
	return nil
}

// Delete removes interfaces as Links does.
func (f *Fake) Delete(_ context.Context, netns string, specs ...Interface) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range slices.Backward(specs) {
		if err := f.fails("delete %s", specs[i].Name); err != nil {
			return err
		}
		f.remove(netns, &specs[i])
	}
	return nil
}

// Announce notes what was announced, see Announced: there are no neighbours.
func (f *Fake) Announce(_ context.Context, netns string, specs ...Interface) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range specs {
		if err := f.fails("announce %s", specs[i].Name); err != nil {
			return err
		}
		f.announced = append(f.announced, netns+" "+specs[i].Name)
	}
	return nil
}

// Announced are the interfaces that were announced: namespace and name.
func (f *Fake) Announced() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.announced)
}

func (f *Fake) remove(netns string, spec *Interface) {
	delete(f.lines, netns+"/"+spec.Name)
	delete(f.lines, "host/"+spec.HostEnd)
	if spec.NIC != nil {
		f.nics[spec.NIC.Name] = spec.NIC.MTU
	}
	delete(f.lines, "guard/"+spec.HostEnd)
}

// NIC describes a NIC that is in the host. Its MAC is made of its name.
func (f *Fake) NIC(name string) (NIC, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	mtu, ok := f.nics[name]
	if !ok {
		return NIC{}, fmt.Errorf("looking for NIC %s: not found", name)
	}
	if err := f.fails("nic %s", name); err != nil {
		return NIC{}, err
	}
	sum := digest(name)
	return NIC{Name: name, Index: 7, Kind: KindDevice, MAC: "02:00:00:" + sum[:2] + ":" + sum[2:4] + ":" + sum[4:6], MTU: mtu, Up: true}, nil
}

// Mend has nothing to do: no link of the fake takes another's name.
func (f *Fake) Mend(context.Context) error { return nil }

// Check finds an interface or not; it compares nothing.
func (f *Fake) Check(_ context.Context, netns string, spec Interface) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.lines[netns+"/"+spec.Name]; !ok {
		return fmt.Errorf("interface %s: not found", spec.Name)
	}
	return nil
}

// Probe finds the addresses of Hosts.
func (f *Fake) Probe(_ context.Context, device string, addresses []netip.Addr) ([]Answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Answer
	for _, address := range addresses {
		if err := f.fails("probe %s %s", device, address); err != nil {
			return nil, err
		}
		mac, err := net.ParseMAC(f.Hosts[address])
		if err == nil {
			out = append(out, Answer{Address: address, MAC: mac})
		}
	}
	return out, nil
}

// EnsureParent makes the tagged device of a NIC and the bridge over either.
// The MAC is made of the NIC's name.
func (f *Fake) EnsureParent(_ context.Context, spec ParentSpec) (Parent, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name, mtu := spec.NIC, f.nics[spec.NIC]
	if spec.Tag != 0 {
		if err := f.fails("tag %s %d", name, spec.Tag); err != nil {
			return Parent{}, err
		}
		below := name
		name = TaggedName(below, spec.Tag)
		f.lines["host/"+name] = fmt.Sprintf("host: %s vlan %d on %s", name, spec.Tag, below)
		f.nics[name] = mtu
	}
	if spec.Bridge {
		if err := f.fails("bridge %s", name); err != nil {
			return Parent{}, err
		}
		port := name
		name = BridgeName(port)
		f.lines["host/"+name] = fmt.Sprintf("host: %s bridge port %s", name, port)
		f.nics[name] = mtu
	}
	return Parent{Name: name, MTU: mtu, MAC: FakeMAC(spec.NIC)}, nil
}

// FakeMAC is the address of a Fake's NIC.
func FakeMAC(nic string) string { return "02:00:00:00:00:" + digest(nic)[:2] }

// PruneParents removes bridges and tagged devices that are not in use, nor
// below what is.
func (f *Fake) PruneParents(_ context.Context, used []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("prune"); err != nil {
		return err
	}
	maps.DeleteFunc(f.lines, func(_, line string) bool {
		fields := strings.Fields(line)
		return len(fields) == 5 && fields[2] == KindBridge && !slices.Contains(used, fields[1])
	})
	maps.DeleteFunc(f.lines, func(_, line string) bool {
		fields := strings.Fields(line)
		if len(fields) != 6 || fields[2] != KindVLAN || slices.Contains(used, fields[1]) {
			return false
		}
		_, bridged := f.lines["host/"+BridgeName(fields[1])]
		return !bridged
	})
	return nil
}

// Sweep removes what is netplane's and not among those to keep; the namespaces of a
// Fake are no files.
func (f *Fake) Sweep(_ context.Context, keep, _ []string) (removed []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("sweep"); err != nil {
		return nil, err
	}
	maps.DeleteFunc(f.lines, func(key, _ string) bool {
		rest, ofHost := strings.CutPrefix(key, "host/")
		name, _, _ := strings.Cut(rest, "/")
		swept := ofHost && (strings.HasPrefix(name, hostEndPrefix) || strings.HasPrefix(name, shimPrefix)) && !slices.Contains(keep, name)
		if swept && name == rest {
			removed = append(removed, name)
		}
		return swept
	})
	return removed, nil
}

// MTU returns what NewFake was given.
func (f *Fake) MTU(device string) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	mtu, ok := f.nics[device]
	if !ok {
		return 0, fmt.Errorf("reading the MTU of %s: not found", device)
	}
	return mtu, nil
}

// AddPath adds addresses and routes to a device of the host.
func (f *Fake) AddPath(_ context.Context, path Path) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("path %s", path.Device); err != nil {
		return err
	}
	if path.Parent != "" {
		f.lines["host/"+path.Device] = fmt.Sprintf("host: %s macvlan on %s mtu %d", path.Device, path.Parent, path.MTU)
	}
	for _, a := range path.Addresses {
		f.lines["host/"+path.Device+"/a"+a.String()] = fmt.Sprintf("host: %s address %s", path.Device, a)
	}
	for _, r := range path.Routes {
		f.lines["host/"+path.Device+"/r"+r.To.String()] = fmt.Sprintf("host: %s route %s src %s", path.Device, r.To, r.Source)
	}
	for _, s := range path.Reach {
		f.lines["host/"+path.Device+"/s"+s.To.String()] = fmt.Sprintf("host: %s route %s src %s", path.Device, s.To, s.Source)
	}
	return nil
}

// RemovePath takes them back.
func (f *Fake) RemovePath(_ context.Context, path Path, last bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("unpath %s", path.Device); err != nil {
		return err
	}
	for _, a := range path.Addresses {
		delete(f.lines, "host/"+path.Device+"/a"+a.String())
	}
	for _, r := range path.Routes {
		delete(f.lines, "host/"+path.Device+"/r"+r.To.String())
	}
	for _, s := range path.Reach {
		delete(f.lines, "host/"+path.Device+"/s"+s.To.String())
	}
	if last && path.Parent != "" {
		maps.DeleteFunc(f.lines, func(key, _ string) bool { return strings.HasPrefix(key, "host/"+path.Device) })
	}
	return nil
}

// RestoreGuards makes the guarded ports those of interfaces.
func (f *Fake) RestoreGuards(_ context.Context, interfaces func() []Interface) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("guard"); err != nil {
		return err
	}
	maps.DeleteFunc(f.lines, func(key, _ string) bool { return strings.HasPrefix(key, "guard/") })
	for _, spec := range interfaces() {
		if spec.SpoofCheck {
			f.lines["guard/"+spec.HostEnd] = guardLine(&spec)
		}
	}
	return nil
}

// KeepUntagged notes that the rules stand.
func (f *Fake) KeepUntagged(_ context.Context, wanted func() bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("untag"); err != nil {
		return err
	}
	delete(f.lines, "untagged")
	if wanted() {
		f.lines["untagged"] = "untagged: ports of pods"
	}
	return nil
}

func guardLine(spec *Interface) string {
	return fmt.Sprintf("guard: %s mac %s", spec.HostEnd, spec.MAC)
}

// SetMasquerade replaces the rules.
func (f *Fake) SetMasquerade(_ context.Context, networks []Masquerade) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("masquerade"); err != nil {
		return err
	}
	maps.DeleteFunc(f.lines, func(key, _ string) bool { return strings.HasPrefix(key, "nft/") })
	for _, n := range networks {
		f.lines["nft/"+n.Device] = fmt.Sprintf("nft: oifname != %s saddr %v masquerade, else dnat from %v but to %v", n.Device, n.Subnets, n.Sources, n.Local)
	}
	return nil
}

// Adopt notes that it was called for an interface beside eth0, and has one for
// every name but those that begin with "absent".
func (f *Fake) Adopt(_ context.Context, netns, name string, beside bool) (Adopted, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("adopt %s", name); err != nil {
		return Adopted{}, err
	}
	if strings.HasPrefix(name, "absent") {
		return Adopted{}, fmt.Errorf("looking for %s: %w", name, unix.ENODEV)
	}
	if beside {
		f.lines[netns+"/"+name+"/defaults"] = fmt.Sprintf("%s: %s foreign, default routes behind others", netns, name)
	}
	return Adopted{MAC: FakeMAC(name), MTU: 1450}, nil
}

// TakeDefault notes the routers of an interface.
func (f *Fake) TakeDefault(_ context.Context, netns, name string, hops []netip.Addr, keep []netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("take default %s", name); err != nil {
		return err
	}
	f.lines[netns+"/"+name+"/default"] = fmt.Sprintf("%s: %s default via %v keep %v", netns, name, hops, keep)
	return nil
}
