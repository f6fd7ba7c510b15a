#!/bin/sh
# Builds the harness of runtime/native/harness with AddressSanitizer and UndefinedBehaviorSanitizer, and with
# ThreadSanitizer, and runs it: check_sanitizers.sh [cases [seed]].
set -e
cd "$(dirname "$0")/.."
cases=${1:-200}
seed=${2:-0}

build() { # folder, sanitizers
  cmake -S . -B "build/$1" -G Ninja -DCNPASS_HARNESS=ON -DCNPASS_WERROR=ON -DCMAKE_BUILD_TYPE=None \
    -DCMAKE_CXX_FLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=$2 -fno-sanitize-recover=all"
  cmake --build "build/$1" --target cnpass_harness
}

build asan address,undefined
for isa in v1 v3 v4; do # on other machines all the same
  CNPASS_ISA=$isa build/asan/cnpass_harness "$cases" "$seed"
done
build tsan thread
build/tsan/cnpass_harness "$cases" "$seed"
