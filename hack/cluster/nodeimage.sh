#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Prints the name of the image that the cluster's nodes run, after making it if need be.
#
# In this order: NETPLANE_NODE_IMAGE; kind's own image, if it is here or a registry answers; one built here from
# Debian packages and Go modules (test/nodeimage), once per content.
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

IMAGE_DIR="$ROOT/test/nodeimage/image"
SUITE=trixie

has_image() { docker image inspect "$1" >/dev/null 2>&1; }

build() { DOCKER_BUILDKIT=0 docker build --quiet "$@"; }

# The machine's own mirror is the one that is known to be reachable; without one debootstrap takes its default.
debian_mirror() {
	grep -hoE '^(URIs:|deb) +(\[[^]]*\] +)?https?://[^ ]*/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
		grep -oE 'https?://[^ ]+' | head -n 1 || true
}

# bootstrap and assemble are run by step, in a shell of their own, whose end removes what they leave: hence no locals there.
bootstrap() {
	local tag="$1"
	dir="$(mktemp -d -p "$CACHE")"
	trap 'rm -rf "$dir"' EXIT
	# shellcheck disable=SC2046 # no mirror, no word
	debootstrap --variant=minbase --include="$(paste -sd, "$IMAGE_DIR/packages.txt")" "$SUITE" "$dir" $(debian_mirror)
	rm -rf "$dir"/var/cache/apt/* "$dir"/var/lib/apt/lists/* "$dir"/usr/share/{doc,man,locale}/*
	tar -C "$dir" -c . | docker import - "$tag"
}

debian() {
	local tag
	tag="netplane/debian:$(digest "$IMAGE_DIR/packages.txt" "$SUITE" 1)"
	if ! has_image "$tag"; then
		[[ $EUID == 0 ]] || die "building the node image needs root, for debootstrap; or give a ready image by NETPLANE_NODE_IMAGE"
		provide debootstrap
		step "installing Debian $SUITE for the node image" bootstrap "$tag"
	fi
	echo "$tag"
}

# nft and the libraries that it loads, for kube-proxy. /etc/protocols too: without it nft prints 6 for tcp, kube-proxy does not
# know its own map elements again when it synchronizes all of them (once an hour), and deletes them.
nft_files() {
	docker run --rm --network none --entrypoint bash "$1" -c \
		'{ echo /etc/protocols /usr/sbin/nft; ldd /usr/sbin/nft | grep -oE "/[^ ]+"; } | xargs tar -ch' | tar -x -C "$2"
}

# archive_image NAME BINARY DEBIAN OUT: an image FROM scratch with one static binary, as an archive.
archive_image() {
	local name="$1" binary="$2" debian="$3" out="$4" base dir
	base="$(basename "$binary")"
	dir="$out.root"
	install -D "$binary" "$dir/usr/local/bin/$base"
	if [[ $base == kube-proxy ]]; then nft_files "$debian" "$dir"; fi
	# The manifests of kubeadm give the command for all but these two.
	local entry=""
	case "$base" in coredns | pause) entry="ENTRYPOINT [\"/usr/local/bin/$base\"]" ;; esac
	printf 'FROM scratch\nCOPY . /\nENV PATH=/usr/local/bin:/usr/sbin:/usr/bin\n%s\n' "$entry" >"$out.Dockerfile"
	build --tag "$name" --file "$out.Dockerfile" "$dir"
	docker save --output "$out" "$name"
	docker image rm "$name"
}

archive_images() {
	local list="$1" debian="$2" out="$3" image name binary candidate
	while read -r image; do
		name="$(basename "${image%:*}")"
		binary=""
		for candidate in "$kubernetes/$name" "$etcd/$name" "$coredns/$name" "$programs/$name"; do
			if [[ -x $candidate ]]; then binary="$candidate"; fi
		done
		[[ -n $binary ]] || die "kubeadm wants the image $image, for which test/nodeimage builds no binary"
		archive_image "$image" "$binary" "$debian" "$out/$name.tar"
	done <<<"$list"
}

# forget_older TAG: a gigabyte each; one that a cluster still runs on cannot be removed, and goes the next time.
forget_older() {
	local image
	docker image ls --format '{{.Repository}}:{{.Tag}}' netplane/node | while read -r image; do
		if [[ $image != "$1" ]]; then docker image rm "$image" || true; fi
	done
}

# assemble DEBIAN LIST TAG: the node without, then with, the images that kubeadm wants.
assemble() {
	local debian="$1" list="$2" tag="$3" kind_files
	container="netplane-node-$$"
	dir="$(mktemp -d -p "$CACHE")"
	trap 'rm -rf "$dir"; docker rm --force "$container" >/dev/null 2>&1' EXIT
	kind_files="$(module_dir test/nodeimage/kind sigs.k8s.io/kind)/images/base/files"
	mkdir -p "$dir/images" "$dir/context/root"/{usr/bin,usr/local/bin,opt/cni/bin,kind}
	cp -r --no-preserve=mode,ownership "$kind_files/." "$IMAGE_DIR/files/." "$dir/context/root/"
	install -m 0755 "$kubernetes"/{kubeadm,kubelet,kubectl} "$dir/context/root/usr/bin/"
	install -m 0755 "$containerd"/* "$programs/ociruntime" "$dir/context/root/usr/local/bin/"
	install -m 0755 "$plugins"/* "$dir/context/root/opt/cni/bin/"
	sed -i "s|@PAUSE@|$(grep /pause: <<<"$list")|" "$dir/context/root/etc/containerd/config.toml"
	module_version test/nodeimage/kubernetes k8s.io/kubernetes >"$dir/context/root/kind/version"
	cp "$IMAGE_DIR/setup.sh" "$dir/context/root/"
	build --tag "$tag-bare" --build-arg "BASE=$debian" --file "$IMAGE_DIR/Dockerfile" "$dir/context"
	archive_images "$list" "$debian" "$dir/images"
	docker run --privileged --name "$container" --network none --entrypoint bash \
		--volume "$dir/images:/images:ro" --volume "$IMAGE_DIR/import.sh:/import.sh:ro" "$tag-bare" /import.sh
	docker commit --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' --change 'CMD []' "$container" "$tag"
	docker rm --force "$container"
	# Its layers stay, below those of the image made from it.
	docker image rm "$tag-bare"
	forget_older "$tag"
}

build_here() {
	local debian list tag
	kubernetes="$("$ROOT/hack/binaries.sh" kubernetes)"
	containerd="$("$ROOT/hack/binaries.sh" containerd)"
	etcd="$("$ROOT/hack/binaries.sh" etcd)"
	coredns="$("$ROOT/hack/binaries.sh" coredns)"
	plugins="$("$ROOT/hack/binaries.sh" plugins)"
	programs="$("$ROOT/hack/binaries.sh" programs)"
	debian="$(debian)"
	# The folders' names carry the hashes of their contents; of this script, what makes the image counts.
	tag="netplane/node:$(digest "$kubernetes" "$containerd" "$etcd" "$coredns" "$plugins" "$programs" "$debian" \
		"$ROOT/test/nodeimage/kind/go.sum" "$IMAGE_DIR"/*.sh "$IMAGE_DIR/Dockerfile" "$IMAGE_DIR/files/etc/containerd/config.toml" \
		"$(declare -f assemble archive_images archive_image nft_files)")"
	if ! has_image "$tag"; then
		list="$("$kubernetes/kubeadm" config images list --kubernetes-version "$(module_version test/nodeimage/kubernetes k8s.io/kubernetes)")"
		step "putting the node image together" assemble "$debian" "$list" "$tag"
	fi
	echo "$tag"
}

# kind_image: kind's own image of this release, from here or from a registry that answers soon; else nothing.
kind_image() {
	local image refused="$CACHE/no-registry"
	image="kindest/node:$(module_version test/nodeimage/kubernetes k8s.io/kubernetes)"
	if ! has_image "$image"; then
		# The answer "no" can take long to come: it is asked for once a day.
		if [[ -n $(find "$refused" -mtime -1 2>/dev/null) ]]; then return; fi
		if ! timeout 10 docker manifest inspect "$image" >/dev/null 2>&1; then
			touch "$refused"
			return
		fi
		step "pulling $image" docker pull "$image"
	fi
	echo "$image"
}

node_image() {
	local image="${NETPLANE_NODE_IMAGE:-}"
	if [[ -z $image ]]; then image="$(kind_image)"; fi
	if [[ -n $image ]]; then echo "$image"; else build_here; fi
}

need go "install the Go toolchain named in go.mod"
need docker "run hack/cluster/engine.sh"
with_lock nodeimage node_image
