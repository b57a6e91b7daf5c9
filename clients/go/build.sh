#!/usr/bin/env bash
# Builds the Go client with Debian's packages alone: build.sh [FOLDER], default build/clients/go.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
out="${1:-$root/build/clients/go}"
proto=camrt/v1/explainer.proto

# protoc writes FOLDER/src/camrt/v1, the package "camrt/v1" of a GOPATH; /usr/share/gocode holds Debian's packages.
mkdir -p "$out/src"
protoc -I "$root/proto" --go_out="$out/src" --go_opt="M$proto=camrt/v1;camrtv1" \
  --go-grpc_out="$out/src" --go-grpc_opt="M$proto=camrt/v1;camrtv1" "$proto"
GO111MODULE=off GOPATH="$out:/usr/share/gocode" GOFLAGS= go build -o "$out/explain" "$here/explain.go"
echo "$out/explain"
