#!/bin/sh
# Builds the native library for development, warnings being errors, and puts it into runtime/ (which git ignores).
set -e
cd "$(dirname "$0")/.."
cmake -S . -B build/native -G Ninja -DCNPASS_WERROR=ON "$@"
cmake --build build/native
cp build/native/libcnpass_ort.so runtime/libcnpass_ort.so.new
mv runtime/libcnpass_ort.so.new runtime/libcnpass_ort.so # in one step: it may be in use
