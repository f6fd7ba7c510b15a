#!/bin/sh
# Builds a wheel in an isolated environment, installs it into a bare one with the versions of constraints.txt, and uses
# it there, outside of the checkout: check_wheel.sh [folder for the wheel].
set -e
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dist=${1:-$work/dist}

"$python" -m venv "$work/build"
"$work/build/bin/pip" wheel --quiet --no-deps --wheel-dir "$dist" .
set -- "$dist"/cnpass-*.whl
[ $# -eq 1 ] || { echo "one wheel was to be in $dist; there are: $*" >&2; exit 1; }
wheel=$(realpath "$1")

"$python" -m venv "$work/venv"
PIP_CONSTRAINT=$PWD/constraints.txt "$work/venv/bin/pip" install --quiet "$wheel"
mkdir "$work/away"
cp models/digits-lenet5.onnx models/digits-lenet5.npz "$work/away"
cd "$work/away"
"$work/venv/bin/python" - <<'END'
import sys
from importlib.metadata import files
from pathlib import Path

import cnpass

library = cnpass.get_library_path()
assert Path(sys.prefix) in library.parents, f"{library} is not the installed one"
sources = [str(path) for path in files("cnpass") if "native" in path.parts or path.suffix in (".cc", ".h")]
assert not sources, f"sources in the wheel: {sources}"
END
"$work/venv/bin/cnpass" inspect digits-lenet5.onnx
"$work/venv/bin/cnpass" evaluate digits-lenet5.onnx --sigma 0.5 --chips 10
echo "the wheel $(basename "$wheel") works"
