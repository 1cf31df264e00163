// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package podnetworks

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// Bounds of Request.MTU, as those of Network.spec.mtu.
const (
	minMTU = 576
	maxMTU = 65535
)

// What Network.spec.sysctls allows, too.
const (
	maxSysctls     = 32
	maxSysctlName  = 64
	maxSysctlValue = 32
	sysctlName     = `^net\.ipv[46]\.(conf|neigh)\.IFNAME\.[a-z0-9_]+$`
	sysctlValue    = `^[-0-9a-z:]+$`
)

// checkTuned checks what can be known without the Network.
func checkTuned(r *Request) error {
	if r.MTU != 0 && (r.MTU < minMTU || r.MTU > maxMTU) {
		return fmt.Errorf("mtu: %d is none: write one from %d to %d", r.MTU, minMTU, maxMTU)
	}
	if len(r.Sysctls) > maxSysctls {
		return fmt.Errorf("sysctls: %d are more than the %d that an interface may have", len(r.Sysctls), maxSysctls)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Sysctls)) {
		if !matches(sysctlName, name, maxSysctlName) {
			return fmt.Errorf("sysctls: %q is no setting of one interface: write net.ipv4.conf.IFNAME.x, net.ipv6.conf.IFNAME.x, or neigh in place of conf", name)
		}
		if value := r.Sysctls[name]; !matches(sysctlValue, value, maxSysctlValue) {
			return fmt.Errorf("sysctls: %q is no value of %s: only digits, lower case letters, '-' and ':' may be in it", value, name)
		}
	}
	return nil
}

// matches compiles the pattern each time: hardly any pod asks for settings.
func matches(pattern, text string, longest int) bool {
	return len(text) <= longest && regexp.MustCompile(pattern).MatchString(text)
}
