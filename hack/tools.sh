#!/usr/bin/env bash
# Prints the folder that holds golangci-lint, controller-gen and kustomize, built once per content of hack/tools/go.mod.
set -o errexit -o nounset -o pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/binaries.sh" tools
