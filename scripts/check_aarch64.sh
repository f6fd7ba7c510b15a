#!/bin/sh
# Builds the harness of runtime/native/harness for this machine and, by a cross compiler, for 64-bit ARM, runs the
# latter in QEMU, and compares what both program, bit by bit: check_aarch64.sh [cases [seed]].
# Needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user).
set -e
cd "$(dirname "$0")/.."
cases=${1:-200}
seed=${2:-0}

build() { # folder, further options
  folder=$1
  shift
  cmake -S . -B "build/$folder" -G Ninja -DCNPASS_HARNESS=ON -DCNPASS_WERROR=ON -DCMAKE_BUILD_TYPE=Release "$@"
  cmake --build "build/$folder"
}

build here
build aarch64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
here=$(build/here/cnpass_harness "$cases" "$seed")
there=$(qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/cnpass_harness "$cases" "$seed")
printf '%s\n%s\n' "$here" "$there"
if [ "${here##* }" != "${there##* }" ]; then
  echo "the programmed weights differ" >&2
  exit 1
fi
