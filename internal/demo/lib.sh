# shellcheck shell=bash
# Helpers of demo.sh: what is shown, and what has to hold.

count=0

say() { printf '\n== %s\n' "$*"; }

fail() {
	printf '\nDEMO FAILED: %s\n' "$*"
	exit 1
}

passed() {
	count=$((count + 1))
	printf 'ok: %s\n' "$*"
}

# show CODE COMMAND... prints a command, runs it, and wants this exit code.
show() {
	local want=$1 code=0
	shift
	printf '$ %s\n' "$*"
	"$@" || code=$?
	[ "$code" = "$want" ] || fail "exit code $code instead of $want: $*"
	[ "$want" = 0 ] || printf '(exit code %s)\n' "$code"
}

# same WHAT A B compares two values.
same() {
	[ "$2" = "$3" ] || fail "$1: $2 is not $3"
	passed "$1"
}

# refused WHAT COMMAND... wants a command to fail.
refused() {
	local what=$1
	shift
	printf '$ %s\n' "$*"
	if "$@"; then fail "$what was not refused"; fi
	passed "$what is refused"
}

sum() { md5sum <"$1" | cut -d' ' -f1; }
