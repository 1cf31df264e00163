# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Shared by the scripts hack/bench-*.sh: builds a package of benchmarks, runs those that are wanted, tells their progress and
# ends with their figures. To be sourced, not run. Whoever sources it has set errexit, nounset and pipefail.
# shellcheck shell=bash
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need go "install the Go toolchain named in go.mod"
out="$ROOT/_output/bench"
mkdir -p "$out"

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

# without_disk: the disk below etcd, or below files that a measurement makes, is no part of what is measured, but would be most of the noise.
without_disk() {
	if [[ -w /dev/shm && $(df --output=avail --block-size=1G /dev/shm | tail -n 1) -ge 4 ]]; then
		scratch="$(mktemp -d /dev/shm/netplane-bench-XXXXXX)"
		export TMPDIR="$scratch"
	fi
}

# Without cgo the packages of Kubernetes come from the same build cache as kube-apiserver's own.
compile() { cd "$ROOT/$2" && CGO_ENABLED=0 go test -c -o "$out/$1.test" .; }

# measure SET DIR NAME: tells the progress on stderr, and leaves the figures in the report. The program's own outputs may be full of logs.
measure() {
	local report="$out/$1-$3.report" log="$out/$1-$3.log"
	say "measuring $3 (log: ${log#"$ROOT/"}) ..."
	: >"$report"
	cd "$ROOT/$2"
	BENCH_REPORT="$report" "$out/$1.test" -test.run '^$' -test.bench "^Benchmark${3^}\$" -test.benchtime 1x -test.timeout 0 >"$log" 2>&1 &
	pid=$!
	tail --pid="$pid" --lines=+1 --follow "$report" | grep --line-buffered -v '^bench ' >&2 || true
	wait "$pid" || {
		grep -A 3 -E '^--- FAIL|FATAL ERROR|cannot run:|^ +[a-z]+_test.go:|^ +[a-z]+.go:' "$log" | tail -n 40 >&2
		die "measuring $3 failed (see $log)"
	}
	pid=""
	grep -q '^bench ' "$report" || die "$3 was skipped (see $log)"
}

# bench SET DIR PARTS [PART]...: measures the parts that are wanted of all (PARTS, one word each), or all of them. A part is the name of a
# benchmark in the package DIR; what it finds out is told by its lines that begin with "bench ".
bench() {
	local set="$1" dir="$2" name all wanted
	read -ra all <<<"$3"
	wanted=("${@:4}")
	((${#wanted[@]})) || wanted=("${all[@]}")
	for name in "${wanted[@]}"; do
		[[ " ${all[*]} " == *" $name "* ]] || die "no such measurement: $name (${all[*]})"
	done
	step "building the benchmark" compile "$set" "$dir"
	without_disk
	for name in "${wanted[@]}"; do measure "$set" "$dir" "$name"; done
	for name in "${wanted[@]}"; do grep '^bench ' "$out/$set-$name.report"; done
}
