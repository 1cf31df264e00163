#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Measures netplane-scheduler against the stock kube-scheduler; test/bench/README.md says what and how to read it.
#
#   NODES=5000 PODS=10000 ROUNDS=3 REQUEUES=100 PROFILES="stock netplane" PPROF= hack/bench-scheduler.sh [heap|requeue|throughput]...
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need go "install the Go toolchain named in go.mod"
assets="$("$ROOT/hack/assets.sh")"
export KUBEBUILDER_ASSETS="$assets" PATH="$assets:$PATH"
out="$ROOT/_output/bench"
mkdir -p "$out"
# Without cgo the packages of Kubernetes come from the same build cache as kube-apiserver's own.
build() { cd "$ROOT/test/bench" && CGO_ENABLED=0 go test -c -o "$out/bench.test" .; }
step "building the benchmark" build

if [[ -n ${PPROF:-} ]]; then
	PPROF="$(realpath -m "$PPROF")"
	export PPROF
fi

pid="" scratch=""
trap 'if [[ -n $pid ]]; then kill "$pid" 2>/dev/null || true; fi; if [[ -n $scratch ]]; then rm -rf "$scratch"; fi' EXIT
# The disk below etcd is no part of what is measured, but would be most of the noise.
if [[ -w /dev/shm && $(df --output=avail --block-size=1G /dev/shm | tail -n 1) -ge 4 ]]; then
	scratch="$(mktemp -d /dev/shm/netplane-bench-XXXXXX)"
	export TMPDIR="$scratch"
fi

# measure NAME BENCHMARK: tells the progress on stderr, as both outputs of the program are full of logs of Kubernetes.
measure() {
	local report="$out/$1.report" log="$out/$1.log"
	say "measuring $1 (log: ${log#"$ROOT/"}) ..."
	: >"$report"
	cd "$ROOT/test/bench"
	BENCH_REPORT="$report" "$out/bench.test" -test.run '^$' -test.bench "^$2\$" -test.benchtime 1x -test.timeout 0 >"$log" 2>&1 &
	pid=$!
	tail --pid="$pid" --lines=+1 --follow "$report" | grep --line-buffered -v '^bench ' >&2 || true
	wait "$pid" || {
		grep -A 3 -E '^--- FAIL|FATAL ERROR|^ +[a-z]+_test.go:' "$log" | tail -n 40 >&2
		die "measuring $1 failed (see $log)"
	}
	pid=""
}

wanted=("$@")
((${#wanted[@]})) || wanted=(heap requeue throughput)
for name in "${wanted[@]}"; do
	case "$name" in
	heap | requeue | throughput) measure "$name" "Benchmark${name^}" ;;
	*) die "no such measurement: $name (heap, requeue or throughput)" ;;
	esac
done
for name in throughput requeue heap; do
	if [[ " ${wanted[*]} " == *" $name "* ]]; then grep '^bench ' "$out/$name.report"; fi
done
