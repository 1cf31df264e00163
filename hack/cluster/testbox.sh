#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Builds the image netplane/testbox:dev that the examples and tests run in pods: Debian's static busybox, all its programs linked.
#
#   hack/cluster/testbox.sh [NODE IMAGE]
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

image=netplane/testbox:dev

need docker "run hack/cluster/engine.sh"
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir"/image/{bin,etc,tmp,www}
busybox="$dir/image/bin/busybox"
# That of the node image is preferred: in the one of Debian 12, wget -T crashes.
if ! docker run --rm --network none --entrypoint cat "${1:-none}" /usr/bin/busybox >"$busybox" 2>/dev/null; then
	provide busybox
	cp "$(command -v busybox)" "$busybox"
fi
chmod 0755 "$busybox"
# A dynamically linked one would find no libraries in an empty image.
if ldd "$busybox" >/dev/null 2>&1; then die "busybox is not static: install busybox-static"; fi

label="$(digest "$busybox" "${BASH_SOURCE[0]}")"
[[ $(docker image inspect --format '{{index .Config.Labels "content"}}' "$image" 2>/dev/null) == "$label" ]] && exit 0
"$busybox" --list | while read -r name; do
	[[ $name == busybox ]] || ln -s busybox "$dir/image/bin/$name"
done
echo 'root:x:0:0:root:/:/bin/sh' >"$dir/image/etc/passwd"
cat >"$dir/Dockerfile" <<'DOCKERFILE'
FROM scratch
COPY image/ /
ENV PATH=/bin
CMD ["sleep", "2147483647"]
DOCKERFILE
docker_build --label "content=$label" --tag "$image" "$dir"
