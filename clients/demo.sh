#!/usr/bin/env bash
# Starts a server with the model that ships with camrt on a free loopback port, explains the sample image through the
# client, and stops the server.   demo.sh <folder of the camrt command> <folder for the overlay>
set -euo pipefail
bin="$1"
out="$2"
work="$(mktemp -d)"
server_pid=
stop() {
  if [ -n "$server_pid" ] && kill "$server_pid" 2>/dev/null; then
    wait "$server_pid" || true
  fi
  rm -rf "$work"
}
trap stop EXIT

"$bin/camrt" serve --port 0 >"$work/out" 2>"$work/log" &
server_pid=$!
for _ in $(seq 300); do
  target="$(sed -n 's/^camrt serves on \([0-9.:]*\) .*/\1/p' "$work/out")"
  [ -n "$target" ] && break
  kill -0 "$server_pid" 2>/dev/null || break
  sleep 0.2
done
if [ -z "${target:-}" ]; then
  echo "The server did not start:" >&2
  cat "$work/log" >&2
  exit 1
fi
cat "$work/out"
"$bin/camrt" explain --sample --server "$target" --out "$out"
