#!/bin/busybox sh
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# The first process of the virtual machine of hack/vm.sh: shows the machine's files below a layer that takes what is written,
# runs the command that the kernel's command line names, and ends the machine. /sbin/modprobe is here, too: the kernel looks for
# it in the file system that it began with.
export PATH=/bin:/sbin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
for name in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do busybox ln -s "/proc/self/${name#*:}" "/dev/${name%:*}"; done
# The kernel loads what it is asked for by name; nobody asks for br_netfilter.
for module in virtio_pci 9pnet_virtio 9p overlay br_netfilter; do busybox modprobe "$module"; done
busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /host
busybox mount -t tmpfs layer /layer
busybox mkdir /layer/data /layer/work
busybox mount -t overlay -o lowerdir=/host,upperdir=/layer/data,workdir=/layer/work all /all
for folder in proc sys dev; do busybox mount --move "/$folder" "/all/$folder"; done
busybox mount -t tmpfs run /all/run
command="$(busybox sed -n 's/.*vm\.run=\([^ ]*\).*/\1/p' /all/proc/cmdline)"
busybox chroot /all /bin/bash "$command" </all/dev/null
echo "vm.exit=$?"
busybox poweroff -f
