#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Fails if a generated file, go.mod or the formatting is not up to date, or a
# kustomize folder cannot be built. It regenerates into a copy, so that the
# tree itself is never changed.
set -o errexit -o nounset -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

copy="$(mktemp -d)"
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory="$copy" 2>/dev/null || true

failed=0
echo "==> generated files"
hack/generate.sh "$copy"
for path in api/v1alpha1 manifests/crds; do
  diff -ru "$path" "$copy/$path" || { echo "$path is out of date: run make generate" >&2; failed=1; }
done

echo "==> go.mod"
for module in . test/bench; do
  (cd "$copy/$module" && go mod tidy)
  for file in go.mod go.sum; do
    diff -u "$module/$file" "$copy/$module/$file" || { echo "$module/$file is not tidy: run go mod tidy there" >&2; failed=1; }
  done
done

echo "==> formatting"
unformatted="$(git ls-files -z '*.go' | xargs -0 gofmt -l)"
[ -z "$unformatted" ] || { echo "not formatted, run gofmt -w:" "$unformatted" >&2; failed=1; }

echo "==> manifests"
kustomize="$(hack/tools.sh kustomize)"
for path in manifests/base manifests/profiles/* manifests/examples; do
  "$kustomize" build "$path" >/dev/null || { echo "$path cannot be built" >&2; failed=1; }
done

echo "==> file and function sizes"
hack/sizes.sh || failed=1
exit "$failed"
