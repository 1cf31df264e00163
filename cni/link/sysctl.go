// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
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

// addSysctls makes the settings that were asked for; unlike our own, each must
// be possible.
func (p *pod) addSysctls(spec *Interface) error {
	settings, err := settingsOf(spec)
	if err != nil || len(settings) == 0 {
		return err
	}
	return p.setSysctls(p.ns, settings)
}

func (p *pod) wrongSysctls(_ netlink.Link, spec *Interface) ([]string, error) {
	settings, err := settingsOf(spec)
	if err != nil || len(settings) == 0 {
		return nil, err
	}
	var wrong []string
	err = inNamespace(p.ns, func() error {
		for i, s := range settings {
			raw, err := os.ReadFile(filepath.Join(p.procSys, "net", s.path))
			if err != nil {
				return fmt.Errorf("reading net/%s: %w", s.path, err)
			}
			if has := strings.TrimSpace(string(raw)); has != s.value {
				wrong = append(wrong, fmt.Sprintf("has %s %s, not %s", spec.Sysctls[i].Name, has, s.value))
			}
		}
		return nil
	})
	return wrong, err
}
