#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Makes `docker info` work.
#
#   hack/cluster/engine.sh        uses the engine that runs; else installs (root on Debian) and starts one
#   hack/cluster/engine.sh stop   ends the engine that this script started, and none else
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

ENGINE="$CACHE/engine"
PIDFILE="$ENGINE/dockerd.pid"
LOG="$ENGINE/dockerd.log"
# A machine without an engine may still have a client, so it is the server that is asked.
engine_answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# The process of the pid file may be long gone and its number be another's: its name must be right as well.
engine_pid() {
	local pid
	pid="$(cat "$PIDFILE" 2>/dev/null)" || return 1
	[[ $(cat "/proc/$pid/comm" 2>/dev/null) == dockerd ]] || return 1
	echo "$pid"
}

# Where a sandbox withholds CAP_SYS_RESOURCE, no privileged container can start: see test/nodeimage/programs/ociruntime.
runtime_flags() {
	local mask dir
	mask="$(awk '/^CapBnd:/ {print $2}' /proc/self/status)"
	if (((16#$mask >> 24) & 1)); then return; fi
	dir="$("$ROOT/hack/binaries.sh" programs)"
	# A copy of its own: the running engine must not lose its runtime when the cache of binaries is pruned.
	install -D -m 0755 "$dir/ociruntime" "$ENGINE/bin/ociruntime"
	echo "--add-runtime=netplane=$ENGINE/bin/ociruntime --default-runtime=netplane"
}

start() {
	local flags i
	mkdir -p "$ENGINE"
	flags="$(runtime_flags)"
	# A file left by an engine that was killed would make the new one refuse to start.
	engine_pid >/dev/null || rm -f "$PIDFILE"
	say "starting the container engine (log: $LOG)"
	# A session of its own, so that it outlives this shell; no descriptor of ours or of our caller's, so that no pipe stays
	# open for it, and no lock (flock(1) hands its own down).
	(
		for i in "/proc/$BASHPID/fd"/*; do
			if ((${i##*/} > 2)); then eval "exec ${i##*/}>&-"; fi
		done
		# shellcheck disable=SC2086 # flags are words
		exec setsid dockerd --data-root "$ENGINE/data" --pidfile "$PIDFILE" $flags </dev/null >>"$LOG" 2>&1
	) &
	for ((i = 0; i < 120; i++)); do
		if engine_answers; then break; fi
		kill -0 $! 2>/dev/null || break
		sleep 0.5
	done
	engine_answers || {
		tail -n 30 "$LOG" >&2
		die "the container engine did not start (the end of $LOG is above)"
	}
	if [[ $(docker info --format '{{.Driver}}') == vfs ]]; then
		say "warning: storage driver vfs: slow, and large on disk; put NETPLANE_CACHE on a file system that overlay2 can use"
	fi
}

stop() {
	local pid i
	pid="$(engine_pid)" || {
		say "no engine of ours is running"
		return
	}
	say "stopping the container engine (pid $pid)"
	kill "$pid"
	for ((i = 0; i < 60; i++)); do
		kill -0 "$pid" 2>/dev/null || return 0
		sleep 0.5
	done
	die "the container engine (pid $pid) did not stop within 30s"
}

ensure() {
	engine_answers && return
	[[ $EUID == 0 ]] || die "no container engine answers: install and start Docker and give this user access to its socket, or run this as root on Debian"
	# Where there is an init system, installing the package starts the engine.
	provide docker dockerd iptables ip
	engine_answers || start
	say "container engine ready: $(docker version --format '{{.Server.Version}}'), $(docker info --format '{{.Driver}}')"
}

case "${1:-start}" in
start) with_lock engine ensure ;;
stop) with_lock engine stop ;;
*) die "usage: engine.sh [start|stop]" ;;
esac
