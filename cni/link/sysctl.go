// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sysctlInterface stands for the interface's name in the name of a Sysctl.
const sysctlInterface = "IFNAME"

// Sysctl is a setting of one interface, such as net.ipv4.conf.IFNAME.rp_filter.
type Sysctl struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// path is the setting's below /proc/sys/net. An interface's name may have dots
// in it, but never a slash.
func (s Sysctl) path(ifname string) (string, error) {
	parts := strings.Split(s.Name, ".")
	if len(parts) != 5 || parts[0] != "net" || parts[3] != sysctlInterface || strings.ContainsAny(s.Name, "/\x00") {
		return "", fmt.Errorf("sysctl %s is none of an interface: it must be net.ipv4.conf.%s.x or the like", s.Name, sysctlInterface)
	}
	parts[3] = ifname
	return filepath.Join(parts[1:]...), nil
}

// settingsOf are the settings that an interface is asked to have.
func settingsOf(spec *Interface) ([]sysctl, error) {
	var out []sysctl
	for _, s := range spec.Sysctls {
		path, err := s.path(spec.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, sysctl{path, s.Value})
	}
	return out, nil
}

// podSysctls are our own settings of an interface: its addresses need no check for
// duplicates, and routers are to leave it alone. Announce adds to them.
func podSysctls(spec *Interface) []sysctl {
	v6 := "ipv6/conf/" + spec.Name + "/"
	out := []sysctl{{v6 + "accept_ra", "0"}} // an interface without IPv6 addresses must not get any so
	if !hasIPv6(spec.Addresses) {
		return out
	}
	return append(out, sysctl{v6 + "disable_ipv6", "0"}, sysctl{v6 + "accept_dad", "0"})
}

// preset has the interfaces be born with our own settings: new ones copy those
// called default. That takes a third of the time that it takes to write each of
// the many files. It returns what gives the defaults back, for others that come
// later, or nil where it is not done: of a single interface nothing would be
// gained, and a pod that gets it by hot plug runs already.
func (p *pod) preset(all []addition) (restore func(), err error) {
	for i := range all {
		if all[i].kind.birth == nil || hasIPv6(all[i].Addresses) != hasIPv6(all[0].Addresses) {
			return nil, nil
		}
	}
	if len(all) < 2 {
		return nil, nil
	}
	var undo []func()
	restore = func() {
		for _, f := range undo {
			f()
		}
	}
	for _, s := range podSysctls(&Interface{Name: "default", Addresses: all[0].Addresses}) {
		f, failed := p.exchangeSysctl(s)
		if f != nil {
			undo = append(undo, f)
		}
		if failed != nil && err == nil {
			err = failed
		}
	}
	return restore, err
}

// exchangeSysctl makes a setting and returns what makes it what it was; nil if
// it was so before.
func (p *pod) exchangeSysctl(s sysctl) (undo func(), err error) {
	fd, err := unix.Open(filepath.Join(p.procSys, "net", s.path), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil && s.needless(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening net/%s: %w", s.path, err)
	}
	var before [16]byte
	n, err := unix.Pread(fd, before[:], 0)
	if err == nil && strings.TrimSpace(string(before[:n])) != s.value {
		if _, err = unix.Pwrite(fd, []byte(s.value), 0); err == nil {
			return func() {
				_, _ = unix.Pwrite(fd, before[:n], 0)
				_ = unix.Close(fd)
			}, nil
		}
	}
	_ = unix.Close(fd)
	if err != nil {
		return nil, fmt.Errorf("setting net/%s to %s: %w", s.path, s.value, err)
	}
	return nil, nil
}

// addSysctls makes the settings that were asked for; unlike our own, each must
// be possible.
func (p *pod) addSysctls(spec *Interface) error {
	settings, err := settingsOf(spec)
	if err != nil {
		return err
	}
	return p.writeSysctls(settings)
}

func (p *pod) wrongSysctls(_ netlink.Link, spec *Interface) ([]string, error) {
	settings, err := settingsOf(spec)
	if err != nil {
		return nil, err
	}
	var wrong []string
	for i, s := range settings {
		has, err := readSetting(filepath.Join(p.procSys, "net", s.path))
		if err != nil {
			return nil, fmt.Errorf("reading net/%s: %w", s.path, err)
		}
		if has != s.value {
			wrong = append(wrong, fmt.Sprintf("has %s %s, not %s", spec.Sysctls[i].Name, has, s.value))
		}
	}
	return wrong, nil
}
