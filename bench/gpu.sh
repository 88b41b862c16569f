#!/usr/bin/env bash
# One visit to a machine with a GPU, in under ten minutes: install, CUDA tests, memory check,
# benchmark. NEVER RUN ON A GPU SO FAR: read its first output with care.
#
#   bench/gpu.sh                 # results go to bench/results
#   OUT=/some/folder bench/gpu.sh
#
# Needs PyTorch for CUDA, nvcc, a C++ compiler, and the packages of [build-system], [project] and
# [test] in pyproject.toml already installed: nothing is downloaded. A step that fails or runs out
# of time does not stop the next; the exit status is 0 only if every step succeeded.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-bench/results}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
python=${PYTHON:-python}
export PYTHONUNBUFFERED=1
summary=()
failed=0

step() {  # step NAME SECONDS COMMAND...
    local name=$1 limit=$2 status began=$SECONDS
    shift 2
    printf '\n=== %s (at most %s s)\n' "$name" "$limit"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/gpu-$name.log"
    status=${PIPESTATUS[0]}
    case $status in
        0) summary+=("ok      $name ($((SECONDS - began)) s)") ;;
        124 | 137) summary+=("TIMEOUT $name (after $limit s)"); failed=1 ;;
        *) summary+=("FAILED  $name (status $status, $((SECONDS - began)) s)"); failed=1 ;;
    esac
}

# Demanded, so that a machine without nvcc fails here and not by skipping everything below.
export ALPHAFUSE_CUDA=1
step machine 30 "$python" -c '
import torch
assert torch.cuda.is_available(), "PyTorch sees no CUDA device"
print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())
'
step install 150 "$python" -m pip install --no-build-isolation --no-deps .
step tests 120 "$python" -m pytest python_tests -m cuda -q
# Our kernels alone, and few tests: every access is checked, which takes its time.
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
step memcheck 120 "$sanitizer" --tool memcheck --kernel-name kernel_substring=alphafuse \
    --report-api-errors no --error-exitcode 1 "$python" -m pytest python_tests/test_lookup.py -m cuda -q -x --maxfail 1
step scoring 150 "$python" bench/scoring.py --device cuda --num-items 1000000 \
    --row-seconds 0.2 --output "$out"

printf '\n=== summary, %s s\n' "$SECONDS"
printf '%s\n' "${summary[@]}"
exit "$failed"
