#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Builds the programs that the test environment is made of, each once per content, and prints the folder that holds them.
#
#   hack/binaries.sh kubernetes|containerd|etcd|coredns|plugins|kind|programs|flannel|flannelcni    all programs of a set
#   hack/binaries.sh kubernetes/kubectl...                                       only these
#   hack/binaries.sh tools/controller-gen...                                     what checks and generates code
#
# What is built is pinned by test/nodeimage/<set>/go.mod (lines `tool`) and its go.sum, tools by hack/tools; nothing but a
# Go module proxy is needed.
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A kubeadm without its version stamped in refuses to work, as it cannot tell which release it is to install.
kubernetes_flags() {
	local version minor pkg
	version="$(module_version test/nodeimage/kubernetes k8s.io/kubernetes)"
	minor="${version#v1.}"
	minor="${minor%%.*}"
	for pkg in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
		printf -- '-X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s -X %s.gitTreeState=clean ' \
			"$pkg" "$version" "$pkg" "$pkg" "$minor" "$pkg"
	done
}

# binary_name PACKAGE: its last element, without a major version; etcd's module calls its program server, flannel's is a daemon.
binary_name() {
	case "$1" in
	go.etcd.io/etcd/server/v3) echo etcd ;;
	github.com/flannel-io/flannel) echo flanneld ;;
	*) basename "${1%/v[0-9]}" ;;
	esac
}

set_dir() { if [[ $1 == tools ]]; then echo "$ROOT/hack/tools"; else echo "$ROOT/test/nodeimage/$1"; fi; }

# No -trimpath: with it nothing would be shared with the Go build cache of netplane's own binaries.
compile() {
	local set="$1" pkg="$2" out="$3" flags="-s -w" cgo=0
	if [[ $set == kubernetes ]]; then flags+=" $(kubernetes_flags)"; fi
	if [[ $set == flannel ]]; then
		# One of its backends is written in C. Static, as the node has another libc.
		need gcc "install it (Debian: gcc libc6-dev)"
		cgo=1
		flags+=" -linkmode external -extldflags -static"
	fi
	cd "$(set_dir "$set")"
	CGO_ENABLED=$cgo GOFLAGS="${GOFLAGS:-} -mod=readonly -buildvcs=false" go build -ldflags "$flags" -o "$out.new" "$pkg"
	mv "$out.new" "$out"
}

build() {
	local set="${1%%/*}" only="" dir out sources packages pkg name
	if [[ $1 == */* ]]; then only="${1#*/}"; fi
	dir="$(set_dir "$set")"
	[[ -f $dir/go.mod ]] || die "no such set of binaries: $set (see test/nodeimage)"
	mapfile -t sources < <(find "$dir" -name 'go.*' -o -name '*.go' | sort)
	out="$CACHE/build/$set-$(digest "${sources[@]}" "$(go env GOVERSION GOARCH)" 1)"
	mkdir -p "$out"
	packages="$(awk '/^tool \(/ {list = 1; next} /^\)/ {list = 0} list {print $1} /^tool [^(]/ {print $2}' "$dir/go.mod")"
	for pkg in $packages; do
		name="$(binary_name "$pkg")"
		if [[ -x $out/$name || ( -n $only && $only != "$name" ) ]]; then continue; fi
		step "building $name from its Go module" compile "$set" "$pkg" "$out/$name"
	done
	[[ -z $only || -x $out/$only ]] || die "no program $only in $dir/go.mod"
	prune "$CACHE/build" "$set"
	echo "$out"
}

need go "install the Go toolchain named in go.mod"
for wanted in "$@"; do
	with_lock "build-${wanted%%/*}" build "$wanted"
done
