#!/bin/sh
# Runs the tests that hold the native library to the NumPy reference with several versions of ONNX Runtime, and prints a
# table: check_ort_versions.sh [version ...]. Wants the development environment as $PYTHON and the library built
# (scripts/build_native.sh); each version gets a virtual environment of its own, which takes all else from there.
set -e
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ $# -gt 0 ] || set -- 1.18.1 1.20.1 1.23.2 "$(sed -n 's/^onnxruntime==//p' constraints.txt)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" scripts/link_packages.py
export PYTHONPATH="$PWD" OMP_NUM_THREADS=1
purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
versions='import numpy, onnxruntime; print(onnxruntime.__version__, "|", numpy.__version__)'

echo "| ONNX Runtime | NumPy | tests |"
echo "|---|---|---|"
status=0
for version; do
  case $version in
  1.18.*) numpy=numpy==1.26.4 ;; # the last one that wants NumPy 1
  *) numpy= ;;
  esac
  venv=$work/$version
  "$python" -m venv --without-pip "$venv"
  "$python" -m pip --python "$venv/bin/python" install --quiet --no-deps --retries 10 "onnxruntime==$version" $numpy
  "$python" -c "$purelib" >"$("$venv/bin/python" -c "$purelib")/all-else.pth"
  "$venv/bin/python" -m pytest -q --tb=short -p no:cacheprovider tests/native/test_conv.py tests/native/test_matmul.py \
    tests/native/test_periphery.py tests/native/test_random.py tests/native/test_repeatability.py \
    tests/runtime/test_native_random.py tests/runtime/test_session.py >"$work/log" 2>&1 || {
    status=1
    cat "$work/log" >&2
  }
  echo "| $("$venv/bin/python" -c "$versions") | $(tail -n 1 "$work/log" | sed 's/ in .*//; s/=//g') |"
done
exit $status
