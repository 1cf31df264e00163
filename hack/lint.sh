#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Runs golangci-lint over the main module.
set -o errexit -o nounset -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

golangci_lint="$(hack/tools.sh golangci-lint)"
"$golangci_lint" run --build-tags e2e --timeout 20m ./...
