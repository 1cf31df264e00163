#!/bin/bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Runs inside the node image while it is built: makes a kind node of a plain Debian with kind's files and our binaries laid over it.
set -o errexit -o nounset -o pipefail

# A module keeps no executable bits, which is how kind's files came here.
chmod 0755 /usr/local/bin/* /kind/bin/* /opt/cni/bin/*

# A node runs what kind starts and nothing else: no login prompts, no timers, no device manager.
find /lib/systemd/system/sysinit.target.wants/ -name 'systemd-tmpfiles-setup.service' -delete
rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \
	/lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/basic.target.wants/* \
	/lib/systemd/system/sockets.target.wants/*udev* /lib/systemd/system/sockets.target.wants/*initctl*
echo 'ReadKMsg=no' >>/etc/systemd/journald.conf
ln -sf /usr/lib/systemd/systemd /sbin/init
systemctl enable kubelet.service containerd.service undo-mount-hacks.service
# Its registrations are those of the whole machine.
systemctl mask systemd-binfmt.service

mkdir -p /etc/kubernetes/manifests /etc/cni/net.d
# Limits of its own would undo those that the engine gave to the node.
ctr oci spec | jq 'del(.process.rlimits)' >/etc/containerd/cri-base.json
# Every clone of the image would be the same machine otherwise; kind's entry point makes a new one.
: >/etc/machine-id
