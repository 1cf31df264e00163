#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Runs a command as root on Debian's kernel, in a virtual machine that sees this machine's files: for what the kernel here lacks.
# What the command writes is lost with the machine, and there is no network. The exit code is the command's. Without a command it
# only sees to it that there is such a machine.
#
#   hack/vm.sh [COMMAND]...
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Only these are packed: modules that links, filters and the sharing of files are made of.
modules=(net lib crypto drivers/virtio fs/9p fs/overlayfs fs/fscache fs/netfs
	drivers/net/{bonding,dummy.ko,ifb.ko,ipvlan,macvlan.ko,macvtap.ko,tap.ko,tun.ko,veth.ko,vrf.ko,vxlan})

can_vm || die "a virtual machine is made as root on Debian for amd64 only"
provide qemu-system-x86_64 busybox

# build: kernel and first file system, from the distribution's package.
build() {
	local work package release folder
	work="$(mktemp -d "$CACHE/vm/new-XXXXXX")"
	cd "$work"
	apt-get update
	package="$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)"
	[[ -n $package ]] || die "the package index has no linux-image-amd64"
	apt-get download "$package"
	dpkg-deb --extract ./*.deb package
	release="$(ls package/lib/modules)"
	folder="lib/modules/$release"
	mkdir -p first/{bin,sbin,proc,sys,dev,host,layer,all} "first/$folder"
	cp "$(command -v busybox)" first/bin/busybox
	ln -s /bin/busybox first/sbin/modprobe
	cp "$ROOT/hack/vm/init.sh" first/init
	tar -C "package/$folder" --create modules.builtin modules.builtin.modinfo modules.order "${modules[@]/#/kernel/}" |
		tar -C "first/$folder" --extract
	busybox depmod -b first "$release"
	(cd first && find . | busybox cpio -o -H newc | gzip -1) >initrd
	mv "package/boot/vmlinuz-$release" kernel
	rm -rf package first ./*.deb
	mv "$work" "$dir"
}

make_machine() {
	[[ ! -d $dir ]] || return 0
	rm -rf "$CACHE"/vm/new-* # of one that was killed
	step "packing Debian's kernel for a virtual machine" build
}

# Emulated: where this runs in a virtual machine itself, KVM may be there and hang. The machine starts in four seconds all the same.
run() {
	exec timeout --kill-after=10 "${VM_TIMEOUT:-1800}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 3072 \
		-nodefaults -no-reboot -display none -vga none -serial stdio -kernel "$dir/kernel" -initrd "$dir/initrd" \
		-append "console=ttyS0 quiet loglevel=1 panic=-1 rdinit=/init vm.run=$script" \
		-virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap </dev/null
}

# report: the command's output, and its exit code as our own.
report() {
	local line
	while IFS= read -r line; do
		line="${line%$'\r'}"
		case "$line" in
		*vm.exit=*) return "${line##*vm.exit=}" ;;
		*) printf '%s\n' "$line" ;;
		esac
	done
	die "the virtual machine ended, or its time was over (VM_TIMEOUT), before the command did"
}

mkdir -p "$CACHE/vm"
dir="$CACHE/vm/machine-$(digest "${BASH_SOURCE[0]}" "$ROOT/hack/vm/init.sh" /etc/debian_version)"
with_lock vm make_machine
prune "$CACHE/vm" machine
(($#)) || exit 0
script="$(mktemp "$CACHE/vm/run-XXXXXX")"
machine=""
trap 'rm -f "$script"; [[ -z $machine ]] || kill "$machine" 2>/dev/null || true' EXIT
{
	for name in PATH HOME GOFLAGS GOCACHE GOMODCACHE GOPATH GOTOOLCHAIN NETPLANE_CACHE XDG_CACHE_HOME; do
		[[ -z ${!name:-} ]] || printf 'export %s=%q\n' "$name" "${!name}"
	done
	printf 'cd %q\n' "$PWD"
	printf '%q ' "$@"
} >"$script"
# Not a pipeline: who ends this script ends the machine with it.
exec 3< <(run)
machine=$!
code=0
report <&3 || code=$?
wait "$machine" || true # it is powering itself off
machine=""
exit "$code"
