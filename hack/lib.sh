# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Shared by the scripts below hack/: where things are kept, how progress is told, how binaries are built once.
# To be sourced, not run. Whoever sources it has set errexit, nounset and pipefail.
# shellcheck shell=bash

# Without it a command that fails inside $(...) is passed over.
shopt -s inherit_errexit

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Everything that is built or downloaded for the test environment lives here and may be deleted at any time.
CACHE="${NETPLANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/netplane}"

# Progress goes to stderr: several scripts print a result on stdout.
say() { printf '==> %s\n' "$*" >&2; }
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# need TOOL HINT: stop with a clear message if a tool is missing.
need() { command -v "$1" >/dev/null || die "$1 is missing: $2"; }

# package_of PROGRAM: the Debian package that it comes in.
package_of() {
	case "$1" in
	docker | dockerd) echo docker.io ;;
	busybox) echo busybox-static ;;
	qemu-system-x86_64) echo qemu-system-x86 ;;
	ip) echo iproute2 ;;
	nft) echo nftables ;;
	*) echo "$1" ;;
	esac
}

# provide PROGRAM...: install those that are missing, where that can be done without asking: as root on Debian and its kin.
provide() {
	local program missing=() packages=()
	for program in "$@"; do
		if ! command -v "$program" >/dev/null; then
			missing+=("$program")
			packages+=("$(package_of "$program")")
		fi
	done
	((${#missing[@]})) || return 0
	[[ $EUID == 0 && -e /etc/debian_version ]] ||
		die "missing: ${missing[*]}. Install them with your package manager (Debian: ${packages[*]}), or run this as root on Debian"
	step "refreshing the package index" apt-get update
	step "installing ${packages[*]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${packages[@]}"
}

# can_vm: hack/vm.sh can make its machine here, for which it installs packages and takes a kernel from Debian's.
can_vm() { [[ $EUID == 0 && $(uname -m) == x86_64 ]] && grep --quiet --line-regexp ID=debian /etc/os-release; }

# step TEXT COMMAND...: run a long command quietly, tell its name and how long it took; its output only if it fails.
# Never call it as a condition (if, &&, ||): there bash ignores errexit in all that is called.
step() {
	local text="$1" started=$SECONDS log failed=""
	shift
	log="$(mktemp)"
	say "$text ..."
	# In the background and waited for, as a condition around the command itself would switch its errexit off.
	("$@") >"$log" 2>&1 &
	wait $! || failed=yes
	if [[ -n $failed ]]; then
		tail -n 60 "$log" >&2
		rm -f "$log"
		die "$text failed after $((SECONDS - started))s (the end of its output is above)"
	fi
	rm -f "$log"
	say "$text: done in $((SECONDS - started))s"
}

# digest FILE|TEXT...: one short hash over the contents of the files named and over every other argument as text.
digest() {
	local item
	for item in "$@"; do
		if [[ -f $item ]]; then cat "$item"; else printf '%s\n' "$item"; fi
	done | sha256sum | cut -c1-16
}

# with_lock NAME COMMAND...: several targets of one make may want the same thing; the first makes it, the others wait.
with_lock() {
	local name="$1"
	shift
	need flock "install util-linux"
	mkdir -p "$CACHE/lock"
	(
		flock 9
		"$@" 9>&-
	) 9>"$CACHE/lock/$name"
}

# docker_build ARGS...: quietly, with BuildKit where the client has it. The old builder's advice to install it is left out.
docker_build() {
	if docker buildx version >/dev/null 2>&1; then
		docker buildx build --builder default --load --quiet "$@" >/dev/null
	else
		DOCKER_BUILDKIT=0 docker build --quiet "$@" 2> >(grep -vE 'DEPRECATED|BuildKit|environment-variable|^$' >&2) >/dev/null
	fi
}

# prune DIR PREFIX: keep the two newest results of a kind (one to go back to), so that the cache does not grow for ever.
prune() {
	local old
	# shellcheck disable=SC2012 # names are ours: letters, digits and dashes
	ls -dt "$1/$2"-* 2>/dev/null | tail -n +3 | while read -r old; do rm -rf "$old"; done
}

# module_version DIR MODULE: the version that the go.mod in DIR pins.
module_version() { (cd "$ROOT/$1" && go list -m -f '{{.Version}}' "$2"); }

# module_dir DIR MODULE: where the module's files are (downloaded if need be).
module_dir() { (cd "$ROOT/$1" && go mod download "$2" && go list -m -f '{{.Dir}}' "$2"); }
