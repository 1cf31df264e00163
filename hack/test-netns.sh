#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Runs the tests on the real kernel; what this machine's kernel lacks something for runs once more on Debian's, in a virtual machine.
#
#   hack/test-netns.sh [FLAG]...       flags of go test, as TESTFLAGS has them
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

gotestsum="$("$ROOT/hack/tools.sh" gotestsum)"
out="$ROOT/_output/netns"
mkdir -p "$out"
cd "$ROOT"

# skipped PACKAGE: a pattern of the tests of a package that were skipped; empty if none was.
skipped() {
	sed -n 's/.*"Action":"skip","Package":"'"${1//\//\\/}"'","Test":"\([^"]*\)".*/\1/p' "$out/tests.json" |
		sed 's/[][\.*^$+?(){}|]/\\&/g; s#/#$/^#g; s/.*/^&$/' | paste --serial --delimiters='|'
}

"$gotestsum" --format pkgname --jsonfile "$out/tests.json" -- -timeout 20m "$@" ./test/netns/...
for package in $(go list ./test/netns/...); do
	pattern="$(skipped "$package")"
	[[ -n $pattern ]] || continue
	can_vm || {
		say "what was skipped in $package was tried on no other kernel: for that be root on Debian for amd64"
		continue
	}
	"$ROOT/hack/vm.sh"
	say "running what was skipped in $package on Debian's kernel"
	binary="$out/$(basename "$package").test"
	go test -c -o "$binary" "$package"
	cd "$(go list -f '{{.Dir}}' "$package")"
	"$gotestsum" --format pkgname --raw-command -- "$ROOT/hack/vm.sh" go tool test2json -t -p "$package" \
		"$binary" -test.v=test2json -test.timeout 25m -test.run "$pattern"
	cd "$ROOT"
done
