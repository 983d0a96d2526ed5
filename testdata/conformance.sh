#!/usr/bin/env bash
# conformance.sh BINARY: builds the Dockerfiles of CONFORMANCE_DIR with BINARY,
# compares the images with what is expected of them, and fails if fewer agree
# than testdata/conformance.min says.
#
#   CONFORMANCE_DIR     cases.tar.zst, bases.tar.zst, open.txt, harness/
#   CONFORMANCE_SAMPLE  N: every Nth case of open.txt; default 1, all of them
#   CONFORMANCE_LOG     where the differences are written
#   CONF_ROOT           where the cases are unpacked; kept for the next run
#
# Each line of conformance.min is N and the least number of cases that agree.
set -euo pipefail
build=$1
here=$(dirname "$(readlink -f "$0")")
dir=$(realpath "${CONFORMANCE_DIR:?names the directory with the cases}")
sample=${CONFORMANCE_SAMPLE:-1}
export CONF_ROOT=${CONF_ROOT:-${TMPDIR:-/var/tmp}/build-conformance}
log=${CONFORMANCE_LOG:-$CONF_ROOT/differences}

"$here/../.ci/packages" docker-registry git zstd
mkdir -p "$CONF_ROOT"
tmp=$(mktemp -d)
started=
finish() {
	[ -z "$started" ] || "$dir/harness/up.sh" down >/dev/null 2>&1 || true
	rm -rf "$tmp"
}
trap finish EXIT

# A registry that runs already is used and left alone.
if ! { [ -f "$CONF_ROOT/run/registry.pid" ] && kill -0 "$(cat "$CONF_ROOT/run/registry.pid")" 2>/dev/null; }; then
	started=1
fi
"$dir/harness/up.sh" </dev/null >"$tmp/up.log" 2>&1 || { cat "$tmp/up.log" >&2; exit 1; }

# The hosts that the cases name, in the form of our own configuration.
awk '/^\[registry\./ {print; next} /^\[/ {skip=1} /^ *(mirrors|http|insecure) *=/ {print}' \
	"$dir/harness/etc/buildkitd.toml" >"$tmp/config.toml"
export BUILD=$build BUILD_CONFIG=$tmp/config.toml BUILD_ROOT=$tmp/root

awk -v n="$sample" 'NR % n == 0' "$dir/open.txt" >"$tmp/list"
total=$(wc -l <"$tmp/list")
start=$SECONDS
# It exits 1 when any case differs; the count below decides.
"$dir/harness/conf.py" check --builder "$dir/harness/builders/build" --list "$tmp/list" -v >"$log" 2>"$tmp/verdicts" || true
same=$(grep -c '^same ' "$tmp/verdicts" || true)
judged=$(grep -cE '^(same|DIFF) ' "$tmp/verdicts" || true)
if [ "$judged" = 0 ]; then
	cat "$tmp/verdicts" "$log" >&2
	echo "conformance: no case was judged" >&2
	exit 1
fi
sed -n '/^categories:/,$p' "$log"
min=$(awk -v n="$sample" '$1 == n {print $2}' "$here/conformance.min")
echo "conformance: $same of $total cases agree in $((SECONDS - start)) s (least: ${min:-none kept}; differences in $log)"
if [ "$same" -lt "${min:-0}" ]; then
	grep '^DIFF ' "$tmp/verdicts" >&2
	exit 1
fi
