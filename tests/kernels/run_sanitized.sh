#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer and runs tests/kernels on it.
# Needs cmake, ninja, pybind11, numpy and pytest; tests of other packages are skipped where those are missing.
#   tests/kernels/run_sanitized.sh [python] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${1:-python3}"
shift || true
build=build/sanitize
site="$build/site"

cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCAMRT_SANITIZE=ON -DCAMRT_STUBS=OFF \
  -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" > /dev/null
ninja -C "$build"

# A package of its own beside the build: the Python sources, the sanitized extension and the metadata of a version.
rm -rf "$site"
mkdir -p "$site/camrt-0.dist-info"
cp -r camrt "$site/camrt"
find "$site/camrt" -name '_native*.so' -delete
cmake --install "$build" --prefix "$site" > /dev/null
printf 'Metadata-Version: 2.1\nName: camrt\nVersion: 0\n' > "$site/camrt-0.dist-info/METADATA"

# Without the site module no editable installation of camrt gets in the way; its packages are still on the path. The
# safe path and pytest's import mode keep the working directory behind the sanitized package.
packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
compiler="${CXX:-g++}"
export PYTHONPATH="$PWD/$site:$packages:$PWD"
export PYTHONSAFEPATH=1
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1
"$python" -S -c 'import camrt.kernels._native as native; assert "sanitize" in native.__file__, native.__file__'
# Only Python's own streams are captured: a report of the sanitizers goes straight to the terminal.
for variant in $("$python" -S -c 'import camrt.kernels._native as n; print(*n.cpu_features()[1])'); do
  echo "CAMRT_CPU=$variant"
  CAMRT_CPU="$variant" "$python" -S -m pytest -c /dev/null --rootdir "$PWD" --confcutdir tests/kernels \
    --import-mode importlib -p no:cacheprovider --capture sys -o "markers=slow: takes long" -m "not slow" -q "$@" \
    --ignore tests/kernels/cuda tests/kernels
done
