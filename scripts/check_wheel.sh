#!/bin/sh
# Builds a wheel in an isolated environment, installs it into a bare one with the versions of constraints.txt, and uses
# it there, outside of the checkout; then the same with a wheel from a machine without a compiler, which has no native
# library: check_wheel.sh [folder for the wheel]. The bare environment has no torch and no Optuna, which take longer to
# install than all else and are imported only to train and to search.
set -e
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dist=${1:-$work/dist}
export PIP_CONSTRAINT="$PWD/constraints.txt" PIP_BUILD_CONSTRAINT="$PWD/constraints.txt" PIP_RETRIES=10
export PIP_DISABLE_PIP_VERSION_CHECK=1

build() { # folder for the wheel; sets `wheel`
  "$python" -m pip wheel --quiet --no-deps --wheel-dir "$1" .
  for wheel in "$1"/cnpass-*.whl; do
    [ "$wheel" = "$(ls "$1"/cnpass-*.whl)" ] || { echo "one wheel was to be in $1" >&2; exit 1; }
  done
  wheel=$(realpath "$wheel")
}

build "$dist"
full=$wheel
# As if there were no compiler: none is asked for, and CMake looks nowhere that has one.
hidden="/usr/bin;/bin;/usr/local/bin;$(dirname "$(command -v c++ || command -v g++ || command -v clang++)")"
CXX=/none CC=/none CMAKE_ARGS="-DCMAKE_CXX_COMPILER=NOTFOUND -DCMAKE_IGNORE_PATH=$hidden" build "$work/bare"

"$python" -m venv "$work/venv"
needed=$("$python" - "$full" <<'END'
import sys, zipfile
from email import message_from_bytes

archive = zipfile.ZipFile(sys.argv[1])
metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
wanted = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
print(*(each for each in wanted if "extra ==" not in each and not each.startswith(("torch", "optuna"))))
END
)
"$work/venv/bin/pip" install --quiet --only-binary :all: $needed
"$work/venv/bin/pip" install --quiet --no-deps "$full"

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
use() { # what to write the record to
  "$work/venv/bin/cnpass" evaluate digits-lenet5.onnx --sigma 0.5 --chips 10 --format json >"$1" 2>"$1.log"
}
"$work/venv/bin/cnpass" inspect digits-lenet5.onnx
use native.json || { cat native.json.log >&2; exit 1; }

"$work/venv/bin/pip" install --quiet --no-deps --force-reinstall "$work/bare"/cnpass-*.whl
use bodies.json || { cat bodies.json.log >&2; exit 1; }
"$work/venv/bin/python" - <<'END'
import json
from pathlib import Path

import cnpass

try:
    raise SystemExit(f"a wheel built without a compiler has {cnpass.get_library_path()}")
except cnpass.errors.MissingDependencyError:
    pass
native, bodies = (json.loads(Path(name).read_text()) for name in ("native.json", "bodies.json"))
said = "the native library is not installed"
assert not any(said in note for note in native["notes"]), native["notes"]
assert sum(said in note for note in bodies["notes"]) == 1, bodies["notes"]
means = [record["points"][0]["mean"] for record in (native, bodies)]
assert abs(means[0] - means[1]) < 0.01, f"means of the library and of function bodies: {means}"
END
echo "the wheel $(basename "$full") works, and without its native library too"
