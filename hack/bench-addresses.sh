#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Measures netplane's address management; test/benchaddresses/README.md says what and how to read it.
#
#   ALLOCS=20000 NODES=5000 PODS=1000 hack/bench-addresses.sh [alloc|writes|claims|memory]...
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need go "install the Go toolchain named in go.mod"
assets="$("$ROOT/hack/assets.sh")"
export KUBEBUILDER_ASSETS="$assets"
out="$ROOT/_output/bench"
mkdir -p "$out"
build() { cd "$ROOT" && CGO_ENABLED=0 go test -c -o "$out/addresses.test" ./test/benchaddresses; }
step "building the benchmark" build

# family PID: the process and all below it. Whoever runs the API server and the agents cannot end them when it is killed itself, and an API
# server without etcd takes long to end by itself.
family() {
	local child
	for child in $(ps -o pid= --ppid "$1"); do family "$child"; done
	echo "$1"
}

pid="" scratch=""
# shellcheck disable=SC2046 # one word for each process is what is wanted
trap 'if [[ -n $pid ]]; then kill -KILL $(family "$pid") 2>/dev/null || true; fi; if [[ -n $scratch ]]; then rm -rf "$scratch"; fi' EXIT
# The disk below etcd is no part of what is measured, but would be most of the noise.
if [[ -w /dev/shm && $(df --output=avail --block-size=1G /dev/shm | tail -n 1) -ge 4 ]]; then
	scratch="$(mktemp -d /dev/shm/netplane-bench-XXXXXX)"
	export TMPDIR="$scratch"
fi

# measure NAME BENCHMARK: tells the progress on stderr, and leaves the figures in the report.
measure() {
	local report="$out/addresses-$1.report" log="$out/addresses-$1.log"
	say "measuring $1 (log: ${log#"$ROOT/"}) ..."
	: >"$report"
	cd "$ROOT/test/benchaddresses"
	BENCH_REPORT="$report" "$out/addresses.test" -test.run '^$' -test.bench "^$2\$" -test.benchtime 1x -test.timeout 0 >"$log" 2>&1 &
	pid=$!
	tail --pid="$pid" --lines=+1 --follow "$report" | grep --line-buffered -v '^bench ' >&2 || true
	wait "$pid" || {
		grep -A 3 -E '^--- FAIL|^ +[a-z]+_test.go:' "$log" | tail -n 40 >&2
		die "measuring $1 failed (see $log)"
	}
	pid=""
	grep -q '^bench ' "$report" || die "$1 was skipped (see $log)"
}

all=(alloc writes claims memory)
wanted=("$@")
((${#wanted[@]})) || wanted=("${all[@]}")
for name in "${wanted[@]}"; do
	[[ " ${all[*]} " == *" $name "* ]] || die "no such measurement: $name (${all[*]})"
done
for name in "${wanted[@]}"; do measure "$name" "Benchmark${name^}"; done
for name in "${wanted[@]}"; do grep '^bench ' "$out/addresses-$name.report"; done
