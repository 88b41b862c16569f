#!/usr/bin/env bash
# One visit to a machine with a GPU, in under ten minutes: install, CUDA tests, compute-sanitizer,
# benchmarks. NEVER RUN ON A GPU SO FAR: read its first output with care.
#
#   tools/gpu.sh                      # results go to bench/results
#   OUT=/some/folder DATA=/folder/of/data/sets tools/gpu.sh
#   ALPHAFUSE_WGMMA=1 tools/gpu.sh    # with wgmma, which is to be measured beside the first
#   tools/gpu.sh --dry-run            # every step on a machine without one, in small, as CI does
#
# DATA has the data set that bench/training/epoch.py trains on, amazon-industrial; without it that
# step is left out, aloud. Needs PyTorch for CUDA, nvcc, a C++ compiler, and the packages of
# [build-system], [project] and [test] in pyproject.toml already installed: nothing is downloaded. A
# step that fails or runs out of time does not stop the next; the exit status is 0 only if every step
# succeeded.
#
# A dry run has the kernels emulated (ALPHAFUSE_CUDA=emulated), and of compute-sanitizer only the
# reading of its options, if the command is found (PyPI has it as nvidia-cuda-sanitizer-api). Its
# limits are ten times the visit's: it looks for mistakes, on machines that may be slow and shared.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
case "$*" in
    "") dry=false ;;
    --dry-run) dry=true ;;
    -h | --help) echo "usage: tools/gpu.sh [--dry-run]; OUT and DATA name folders, see its first lines"; exit 0 ;;
    *) echo "usage: tools/gpu.sh [--dry-run]" >&2; exit 2 ;;
esac
out=${OUT:-bench/results}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
python=${PYTHON:-python}
export PYTHONUNBUFFERED=1
summary=()
failed=0

step() {  # step NAME SECONDS COMMAND...
    local name=$1 limit=$(($2 * patience)) status began=$SECONDS
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

# The build is demanded, so that a machine without nvcc fails here and not by skipping everything below.
if $dry; then
    export ALPHAFUSE_CUDA=emulated
    look='from alphafuse_ext import _core; assert "cuda_emulated" in _core.devices; print(_core.devices)'
    device=cpu
    patience=10
    scoring=(--num-items 2000 --batch 1 8 --num-ids 500 --row-seconds 0.01)
    training=(--steps 2 --dim 32)
else
    export ALPHAFUSE_CUDA=1
    look='
import torch
from alphafuse_ext import _core
assert torch.cuda.is_available(), "PyTorch sees no CUDA device"
print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name(), _core.devices)
assert "cuda" in _core.devices, "no CUDA kernels were built"
'
    device=cuda
    patience=1
    scoring=(--num-items 1000000 --row-seconds 0.2)
    training=(--steps 40)
fi
workers=()
if ! $dry && "$python" -c 'import xdist' 2> /dev/null; then workers=(-n 4); fi
pytest=("$python" -m pytest -q -p no:cacheprovider)

step install 150 "$python" -m pip install --no-build-isolation --no-deps .
# From another folder, so that what was installed is imported and not the sources.
step machine 30 env --chdir=/ "$python" -c "$look"
ops=(python_tests/test_{lookup,score_all,score_candidates,sampled_softmax,cross_entropy,topk,target_ranks,optim,capture}.py)
$dry || step tests 120 "${pytest[@]}" "${workers[@]}" python_tests -m cuda

# Our kernels alone, and few tests, of every op: each access is checked, which takes its time.
few='strided or half_precision or many_items or sampled_softmax or sparse_gradient or ties_and'
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
for tool in memcheck racecheck initcheck; do
    options=(--tool "$tool" --kernel-name kernel_substring=alphafuse --report-api-errors no
        --error-exitcode 1)
    if ! $dry; then
        step "$tool" 60 "$sanitizer" "${options[@]}" "${pytest[@]}" "${ops[@]}" -m cuda -k "$few" -x
    elif command -v "$sanitizer" > /dev/null; then
        step "$tool" 60 "$sanitizer" "${options[@]}" --version
    else
        summary+=("LEFT OUT $tool: no compute-sanitizer here")
    fi
done
$dry && step tests 60 "${pytest[@]}" "${ops[@]}" -k "cuda_emulated and ($few)" -x

step scoring 120 "$python" bench/scoring.py --device "$device" --output "$out" "${scoring[@]}"
if [ -n "${DATA:-}" ]; then
    step training 60 "$python" bench/training/epoch.py amazon-industrial --data "$DATA" \
        --device "$device" --output "$out" "${training[@]}"
else
    summary+=("LEFT OUT training: DATA names no folder of data sets")
fi

printf '\n=== summary, %s s\n' "$SECONDS"
printf '%s\n' "${summary[@]}"
exit "$failed"
