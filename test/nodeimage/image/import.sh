#!/bin/bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Runs inside the node image while it is built: puts the archives below /images into containerd's store.
set -o errexit -o nounset -o pipefail

containerd --log-level error &
daemon=$!
for _ in $(seq 100); do
	if ctr version >/dev/null 2>&1; then break; fi
	sleep 0.1
done
for archive in /images/*.tar; do
	# No unpacking: an overlay cannot lie on the overlay that this container has. The node does it at first use.
	ctr --namespace=k8s.io images import --label=io.cri-containerd.pinned=pinned --no-unpack "$archive"
done
kill "$daemon"
wait "$daemon" || true
