// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// Hardware is what sysfs tells of a NIC. The zero value is a link without
// hardware behind it.
type Hardware struct {
	// Physical: the kernel has a device behind the link (class/net/*/device).
	Physical bool
	// SpeedMbps is 0 where the driver does not tell, or the link is down.
	SpeedMbps int64
	// NUMANode is nil where the device hangs on none.
	NUMANode *int32
	// PCIAddress is domain:bus:device.function, also of the PCI device below a
	// virtio one.
	PCIAddress string
	// Driver is the kernel driver's name.
	Driver string
}

// Sysfs reads NIC properties from a sysfs, which tests replace by a map.
type Sysfs struct{ FS fs.FS }

// HostSysfs is the sysfs of this process's mount namespace.
func HostSysfs() Sysfs { return Sysfs{FS: os.DirFS("/sys")} }

// Hardware reads what there is; a file that is missing or refuses to be read
// (speed does, with EINVAL, while the link is down) leaves its field empty.
func (s Sysfs) Hardware(name string) Hardware {
	if s.FS == nil {
		return Hardware{}
	}
	dir := path.Join("class/net", name)
	var out Hardware
	if speed, ok := s.number(path.Join(dir, "speed")); ok && speed > 0 {
		out.SpeedMbps = speed
	}
	device, err := fs.ReadLink(s.FS, path.Join(dir, "device"))
	if err != nil {
		return out
	}
	out.Physical = true
	if node, ok := s.number(path.Join(dir, "device/numa_node")); ok && node >= 0 {
		n := int32(node)
		out.NUMANode = &n
	}
	if driver, err := fs.ReadLink(s.FS, path.Join(dir, "device/driver")); err == nil {
		out.Driver = path.Base(driver)
	}
	out.PCIAddress = lastPCI(device)
	if out.PCIAddress == "" {
		if own, err := fs.ReadLink(s.FS, dir); err == nil {
			out.PCIAddress = lastPCI(own)
		}
	}
	return out
}

// lastPCI returns the innermost PCI address of a device path: a NIC behind
// bridges has several.
func lastPCI(device string) string {
	last := ""
	for element := range strings.SplitSeq(device, "/") {
		if isPCI(element) {
			last = element
		}
	}
	return last
}

// isPCI recognises domain:bus:device.function, 0000:3b:00.0; a PCI bus
// (pci0000:00) is none.
func isPCI(element string) bool {
	const form = "xxxx:xx:xx.x"
	if len(element) != len(form) {
		return false
	}
	for i := range len(form) {
		c := element[i]
		hex := c >= '0' && c <= '9' || c >= 'a' && c <= 'f'
		if form[i] == 'x' && !hex || form[i] != 'x' && c != form[i] {
			return false
		}
	}
	return true
}

func (s Sysfs) number(name string) (int64, bool) {
	raw, err := fs.ReadFile(s.FS, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 32)
	return n, err == nil
}
