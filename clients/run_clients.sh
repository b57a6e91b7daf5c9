#!/usr/bin/env bash
# Builds the client examples and runs each against a server with the model that ships with camrt.
#
#   run_clients.sh [--require-all]
#
# Every client must print the class of the sample image and save its overlay. A client whose toolchain is missing is
# skipped by name; with --require-all it counts as failed. Nothing is installed but npm packages in node/node_modules.
# CAMRT_PYTHON names the Python that has camrt[server]; the default is that of .venv.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/.." && pwd)"
build="$root/build/clients"
python="${CAMRT_PYTHON:-$root/.venv/bin/python}"
sample="$root/camrt/data/sample.png"
expected='^triangle outline (0\.[0-9]{3}|1\.000)$'
gopath=/usr/share/gocode/src

require_all=no
case "${1:-}" in
  "") ;;
  --require-all) require_all=yes ;;
  *) echo "Usage: $0 [--require-all]" >&2; exit 2 ;;
esac

source "$here/server.sh"

# What a client lacks: prints the first thing that is missing.
lacks_programs() { for program in "$@"; do command -v "$program" >/dev/null || { echo "$program"; return; }; done; }
lacks_folders() { for folder in "$@"; do [ -d "$folder" ] || { echo "$folder"; return; }; done; }
lacks_node() { lacks_programs node npm; }
lacks_cpp() {
  lacks_programs cmake c++ pkg-config protoc grpc_cpp_plugin
  pkg-config --exists grpc++ protobuf 2>/dev/null || echo "libgrpc++-dev"
}
lacks_go() {
  lacks_programs go protoc protoc-gen-go protoc-gen-go-grpc
  lacks_folders "$gopath/google.golang.org/grpc" "$gopath/google.golang.org/protobuf"
}

build_node() { (cd "$here/node" && npm ci --ignore-scripts --no-audit --no-fund --prefer-offline); }
build_cpp() { cmake -S "$here/cpp" -B "$build/cpp" && cmake --build "$build/cpp"; }
build_go() { "$here/go/build.sh" "$build/go"; }

run_node() { timeout 60 node "$here/node/explain.js" "$@"; }
run_cpp() { timeout 60 "$build/cpp/explain" "$@"; }
run_go() { timeout 60 "$build/go/explain" "$@"; }

same_size() {
  "$python" -c '
import sys
from PIL import Image
overlay, image = Image.open(sys.argv[1]), Image.open(sys.argv[2])
overlay.load()
sys.exit(overlay.format != "PNG" or overlay.size != image.size)' "$@"
}

# The words of a client, if it failed.
check() {
  local client="$1" overlay="$work/$1.png" answer
  "build_$client" >"$work/build.log" 2>&1 || { cat "$work/build.log"; echo "it could not be built"; return; }
  answer="$("run_$client" "$address" "$sample" "$overlay" 2>&1)" || { echo "it ended with: $answer"; return; }
  [[ "$answer" =~ $expected ]] || { echo "it printed: $answer"; return; }
  same_size "$overlay" "$sample" || { echo "the overlay is no PNG of the size of the sample"; return; }
  if "run_$client" "$address" "$here/README.md" "$overlay" >/dev/null 2>&1; then
    echo "it did not fail for a file that is no image"
  fi
}

start_server "$python" -m camrt serve --host 127.0.0.1 --port 0 --threads 1
passed=0 failed=0 skipped=0
for client in node cpp go; do
  lacking="$("lacks_$client" | head -n 1)"
  if [ -n "$lacking" ]; then
    echo "$client: skipped, $lacking is missing"
    skipped=$((skipped + 1))
    continue
  fi
  failure="$(check "$client")"
  if [ -n "$failure" ]; then
    echo "$client: failed: $failure"
    failed=$((failed + 1))
  else
    echo "$client: passed"
    passed=$((passed + 1))
  fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && { [ "$require_all" = no ] || [ "$skipped" -eq 0 ]; }
