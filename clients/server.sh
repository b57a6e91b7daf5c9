# Sourced by the scripts of this folder: a server with the model that ships with camrt on a free loopback port.
#
#   start_server COMMAND...   runs COMMAND (camrt serve and its flags) and sets `address`; exits where it does not start
#
# $work is a folder for its files; both are gone when the script ends.

work="$(mktemp -d)"
server_pid=
stop() {
  if [ -n "$server_pid" ] && kill "$server_pid" 2>/dev/null; then
    wait "$server_pid" || true
  fi
  rm -rf "$work"
}
trap stop EXIT

start_server() {
  "$@" >"$work/server.out" 2>"$work/server.log" &
  server_pid=$!
  for _ in $(seq 300); do
    address="$(sed -n 's/^camrt serves on \([0-9.:]*\) .*/\1/p' "$work/server.out")"
    [ -n "$address" ] && return
    kill -0 "$server_pid" 2>/dev/null || break
    sleep 0.2
  done
  echo "The server did not start:" >&2
  cat "$work/server.log" >&2
  exit 1
}
