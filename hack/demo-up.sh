#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Brings up the kind cluster $1 with netplane installed from this tree. Safe to
# run again: what is there and right is left alone.
set -o errexit -o nounset -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cluster="${1:-netplane}"
context="kind-$cluster"

command -v go >/dev/null || { echo "Go is missing: install it from https://go.dev/dl and run again" >&2; exit 1; }
say() { printf '==> [%4ds] %s\n' "$SECONDS" "$*"; }

say "container engine"
hack/cluster/engine.sh
say "cluster $cluster: node image, nodes, physical networks"
hack/cluster/up.sh "$cluster"
say "netplane: binaries and images"
make images
eval "$(hack/cluster/env.sh)"
hack/cluster/load.sh "$cluster" netplane/scheduler:dev netplane/controller:dev netplane/agent:dev
say "netplane: install"
kubectl --context "$context" apply --server-side --force-conflicts -k manifests/base
# The image tag stays the same from build to build, so the pods carry the
# image's ID: a pod is replaced when its image changed, and only then.
stamp() {
  local kind_name="$1" image="$2" id
  id="$(docker image inspect --format '{{.Id}}' "$image")"
  kubectl --context "$context" -n netplane-system patch "$kind_name" --type merge \
    -p "{\"spec\":{\"template\":{\"metadata\":{\"annotations\":{\"netplane.io/image-id\":\"$id\"}}}}}"
}
stamp deployment/netplane-scheduler netplane/scheduler:dev
stamp deployment/netplane-controller netplane/controller:dev
stamp daemonset/netplane-agent netplane/agent:dev
for workload in deployment/netplane-controller deployment/netplane-scheduler daemonset/netplane-agent; do
  say "waiting for $workload"
  if ! kubectl --context "$context" -n netplane-system rollout status "$workload" --timeout=180s; then
    kubectl --context "$context" -n netplane-system get pods -o wide >&2
    kubectl --context "$context" -n netplane-system describe "$workload" >&2
    kubectl --context "$context" -n netplane-system logs "$workload" --tail=50 >&2 || true
    echo "$workload did not become ready; above are its pods and its log" >&2
    exit 1
  fi
done
say "netplane is ready on cluster $cluster (kubectl --context $context)"
