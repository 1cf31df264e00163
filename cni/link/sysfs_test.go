// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/ptr"
)

func symlink(target string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink | 0o777}
}

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

func TestHardware(t *testing.T) {
	sysfs := Sysfs{FS: fstest.MapFS{
		"class/net/eth1/device":                                   symlink("../../../devices/pci0000:00/0000:00:1c.0/0000:3b:00.1"),
		"class/net/eth1/speed":                                    file("25000\n"),
		"devices/pci0000:00/0000:00:1c.0/0000:3b:00.1/numa_node":  file("1\n"),
		"devices/pci0000:00/0000:00:1c.0/0000:3b:00.1/driver":     symlink("../../../../bus/pci/drivers/ice"),
		"class/net/ens3":                                          symlink("../../devices/pci0000:00/0000:00:03.0/virtio0/net/ens3"),
		"devices/pci0000:00/0000:00:03.0/virtio0/net/ens3/device": symlink("../../../virtio0"),
		"devices/pci0000:00/0000:00:03.0/virtio0/net/ens3/speed":  file("-1\n"),
		"devices/pci0000:00/0000:00:03.0/virtio0/driver":          symlink("../../../../bus/virtio/drivers/virtio_net"),
		"devices/pci0000:00/0000:00:03.0/virtio0/numa_node":       file("-1\n"),
		"class/net/br0/speed":                                     file("10000\n"),
		"class/net/odd/device":                                    symlink("../../../devices/pci0000:00/platform"),
		"devices/pci0000:00/platform/numa_node":                   file("none"),
	}}
	for name, want := range map[string]Hardware{
		"eth1":    {Physical: true, SpeedMbps: 25000, NUMANode: ptr.To[int32](1), PCIAddress: "0000:3b:00.1", Driver: "ice"},
		"ens3":    {Physical: true, PCIAddress: "0000:00:03.0", Driver: "virtio_net"},
		"br0":     {SpeedMbps: 10000},
		"odd":     {Physical: true},
		"missing": {},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(want, sysfs.Hardware(name)); diff != "" {
				t.Errorf("hardware (-want +got):\n%s", diff)
			}
		})
	}
}
