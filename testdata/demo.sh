#!/usr/bin/env bash
# demo.sh BINARY: builds testdata/super-server with BINARY, runs it and shows
# what it answers. Leaves nothing behind.
set -euo pipefail
build=$1
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
	echo "make demo: building and running containers needs root for now; try: sudo make demo" >&2
	exit 1
fi

tmp=$(mktemp -d)
registry= server=
finish() {
	for pid in $server $registry; do
		kill "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	rm -rf "$tmp"
}
trap finish EXIT

say() { printf '\n== %s\n' "$*"; }

# wait_for FILE PATTERN PID: the first line of FILE that matches, at most a
# minute from now, while PID lives.
wait_for() {
	for _ in $(seq 600); do
		grep -m1 -E "$2" "$1" && return
		kill -0 "$3" 2>/dev/null || break
		sleep 0.1
	done
	cat "$1" >&2
	return 1
}

export BUILD_ROOT=$tmp/root
go build -o "$tmp/mkbase" ./internal/testbase/mkbase
if "$tmp/mkbase" -probe https://registry-1.docker.io/v2/ 2>/dev/null; then
	say "Docker Hub answers: node:alpine comes from there"
else
	say "Docker Hub does not answer: making a stand-in for node:alpine from this machine's Node.js and Debian's busybox"
	.ci/packages busybox-static docker-registry nodejs
	mkdir "$tmp/registry"
	"$tmp/mkbase" -serve "$tmp/registry" node library/node:alpine >"$tmp/address" 2>"$tmp/mkbase.log" &
	registry=$!
	mirror=$(wait_for "$tmp/address" : "$registry") || { cat "$tmp/mkbase.log" >&2; exit 1; }
	printf '[registry."docker.io"]\n  mirrors = ["%s"]\n' "$mirror" >"$tmp/config.toml"
	export BUILD_CONFIG=$tmp/config.toml
	echo "   it is served on $mirror, which this demo's configuration names as a mirror of docker.io"
fi

say "build -t super-server testdata/super-server"
"$build" -t super-server testdata/super-server

say "build run --network host -e HOST=127.0.0.1 -e PORT=0 super-server"
"$build" run --rm --network host -e HOST=127.0.0.1 -e PORT=0 super-server >"$tmp/log" 2>&1 &
server=$!
line=$(wait_for "$tmp/log" 'listens on port' "$server")
echo "$line"
port=${line##* }

say "GET http://127.0.0.1:$port/demo"
exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'GET /demo HTTP/1.0\r\n\r\n' >&3
answer=$(cat <&3)
exec 3>&-
echo "$answer"
case $answer in
*"super-server says hello to GET /demo"*) ;;
*) echo "make demo: that is not the answer" >&2; exit 1 ;;
esac

say "stopping it"
kill -INT "$server"
wait "$server" || true
server=
say "done"
