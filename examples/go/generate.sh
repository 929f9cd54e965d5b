#!/usr/bin/env bash
# Makes the stubs in kvdbv1 anew. Needs protoc, protoc-gen-go and protoc-gen-go-grpc (Debian: protobuf-compiler,
# protoc-gen-go, protoc-gen-go-grpc).
set -euo pipefail
cd "$(dirname "$0")"
module=kvdb.example/tour
files=(kvdb/v1/common.proto kvdb/v1/kv.proto)
map=""
for file in "${files[@]}"; do map+=",M$file=$module/kvdbv1"; done
protoc -I../../proto --go_out=. --go_opt="module=$module$map" --go-grpc_out=. --go-grpc_opt="module=$module$map" "${files[@]}"
