#!/usr/bin/env bash
# A visit to a machine with a GPU. Its steps are in the order of what each is worth by itself, and each
# leaves its log and a line in gpu-summary.txt when it ends: a visit that is cut short leaves what it
# had. NEVER RUN ON A GPU SO FAR: read its first output with care.
#
#   tools/gpu.sh                      # all steps, some twenty minutes; results go to bench/results
#   tools/gpu.sh install machine precision    # these, and no others
#   OUT=/some/folder DATA=/folder/of/data/sets tools/gpu.sh
#   tools/gpu.sh --dry-run            # every step on a machine without one, in small, as CI does
#
#   install     the package, in place of what is there
#   machine     what is there, and that a kernel runs
#   precision   one call of every op in every precision, forward and backward
#   native      the kernels' own test programs
#   tests       pytest -m cuda
#   memcheck, racecheck    the test programs under compute-sanitizer
#   bfloat16, float32      bench/scoring.py with large batches, beside the peers that are installed
#                          (pip install cut-cross-entropy liger-kernel cuvs-cu12)
#   training    an epoch's steps of amazon-industrial, in float32 and under autocast; needs DATA
#   profile     ncu of cross entropy forward and backward and of topk, where it is installed
#   topk        both ways of topk by the size of the catalog, to set kMinFusedItems by
#   wgmma       an H100 alone: a build with ALPHAFUSE_WGMMA=1, its tests, by tolerance, and times
#
# Needs PyTorch for CUDA, nvcc, a C++ compiler, and the packages of [build-system], [project] and
# [test] in pyproject.toml already installed: nothing is downloaded. A step that fails or runs out of
# time does not stop the next; the exit status is 0 only if every step succeeded.
#
# A dry run has the kernels emulated (ALPHAFUSE_CUDA=emulated), and of compute-sanitizer only the
# reading of its options, if the command is found (PyPI has it as nvidia-cuda-sanitizer-api). Its
# limits are ten times the visit's: it looks for mistakes, on machines that may be slow and shared.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
all=(install machine precision native tests memcheck racecheck bfloat16 float32 training profile topk wgmma)
usage="usage: tools/gpu.sh [--dry-run] [STEP...]; steps: ${all[*]}; see its first lines"
dry=false
wanted=()
for argument in "$@"; do
    case " ${all[*]} " in
        *" $argument "*) wanted+=("$argument") ;;
        *) case $argument in
            --dry-run) dry=true ;;
            -h | --help) echo "$usage"; exit 0 ;;
            *) echo "$usage" >&2; exit 2 ;;
        esac ;;
    esac
done
[ ${#wanted[@]} -gt 0 ] || wanted=("${all[@]}")
out=${OUT:-bench/results}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
python=${PYTHON:-python}
export PYTHONUNBUFFERED=1
failed=0
: > "$out/gpu-summary.txt"

is_wanted() { case " ${wanted[*]} " in *" $1 "*) ;; *) return 1 ;; esac; }
note() { echo "$1" | tee -a "$out/gpu-summary.txt"; }
leave_out() { is_wanted "$1" && note "LEFT OUT $1: $2"; return 0; }

step() {  # step NAME SECONDS COMMAND...
    local name=$1 limit=$(($2 * patience)) status began=$SECONDS
    is_wanted "$name" || return 0
    shift 2
    printf '\n=== %s (at most %s s)\n' "$name" "$limit"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/gpu-$name.log"
    status=${PIPESTATUS[0]}
    case $status in
        0) note "ok      $name ($((SECONDS - began)) s)" ;;
        124 | 137) note "TIMEOUT $name (after $limit s)"; failed=1 ;;
        *) note "FAILED  $name (status $status, $((SECONDS - began)) s)"; failed=1 ;;
    esac
}

# The build is demanded, so that a machine without nvcc fails here and not by skipping everything below.
if $dry; then
    export ALPHAFUSE_CUDA=emulated
    device=cpu marked=cuda_emulated
    patience=10
    sizes=(--num-items 500 --batch 8 --num-ids 500 --row-seconds 0.01 --ops cross_entropy topk)
    training=(--steps 2 --dim 32)
    programs=(lookup)
else
    export ALPHAFUSE_CUDA=1
    device=cuda marked=cuda
    patience=1
    sizes=(--num-items 1000000 --batch 512 1024 2048 4096 --row-seconds 0.2
        --ops cross_entropy topk score_all target_ranks)
    training=(--steps 40)
    programs=(lookup score_all target_ranks topk cross_entropy)
fi
workers=()
if ! $dry && "$python" -c 'import xdist' 2> /dev/null; then workers=(-n 4); fi
pytest=("$python" -m pytest -q -p no:cacheprovider)
native=build/cmake-$("$python" -c 'import sys; print(sys.implementation.cache_tag)')

step install 240 "$python" -m pip install --no-build-isolation --no-deps .

# From another folder, so that what was installed is imported and not the sources. A driver that is
# older than nvcc's runtime is told of in one line.
step machine 30 env --chdir=/ "$python" -c '
import sys
import torch
import alphafuse_ext as af
from alphafuse_ext import _core
from alphafuse_ext.ops import native

if sys.argv[1] == "cuda":
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA device")
    print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name(), af.build_info())
    if "cuda" not in _core.devices:
        sys.exit("no CUDA kernels were built")
else:
    native.use_backend("cuda_emulated").__enter__()
one = torch.ones(2, 4, device=sys.argv[1])
try:
    found = af.lookup(torch.tensor([1, 0], device=sys.argv[1]), one, one)
    print("a kernel runs:", found.sum().item() == 16)
except RuntimeError as error:
    sys.exit(str(error).splitlines()[0])
' "$device"

step precision 60 "${pytest[@]}" python_tests/test_precision.py -k "$marked"

# native_tests FOLDER REGEX: builds and runs test programs, beside the objects of the installation.
native_tests() {
    cmake --build "$1" --target "${programs[@]/#/test_}" > "$1/native.log" || { cat "$1/native.log"; return 1; }
    ctest --test-dir "$1" --output-on-failure --tests-regex "^($(IFS='|'; echo "${programs[*]}"))\$"
}
export -f native_tests
listed=$(declare -p programs)
step native 180 bash -c "$listed; native_tests $native"

ops=(python_tests/test_{lookup,score_all,score_candidates,sampled_softmax,cross_entropy,topk,target_ranks,optim,capture}.py)
few='strided or half_precision or many_items or sampled_softmax or sparse_gradient or ties_and'
if $dry; then
    step tests 60 "${pytest[@]}" "${ops[@]}" -k "cuda_emulated and ($few)" -x
else
    step tests 150 "${pytest[@]}" "${workers[@]}" python_tests -m cuda
fi

# Our kernels alone: each access is checked, which takes its time.
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
for tool in memcheck racecheck; do
    options=(--tool "$tool" --kernel-name kernel_substring=alphafuse --report-api-errors no
        --error-exitcode 1)
    if ! $dry; then
        listed=$(declare -p programs options)
        step "$tool" 120 bash -c "$listed"'
            for program in "${programs[@]}"; do
                echo "--- $program"
                "$0" "${options[@]}" "$1/test_$program" || exit 1
            done' "$sanitizer" "$native"
    elif command -v "$sanitizer" > /dev/null; then
        step "$tool" 60 "$sanitizer" "${options[@]}" --version
    else
        leave_out "$tool" "no compute-sanitizer here"
    fi
done

for dtype in bfloat16 float32; do
    step "$dtype" 150 "$python" bench/scoring.py --device "$device" --dtype "$dtype" --output "$out" \
        "${sizes[@]}"
done
if [ -n "${DATA:-}" ]; then
    step training 120 bash -c '
        for precision in float32 bf16; do
            "$@" --precision "$precision" || exit 1
        done' epochs "$python" bench/training/epoch.py amazon-industrial --data "$DATA" \
        --device "$device" --output "$out" --loss cross_entropy "${training[@]}"
else
    leave_out training "DATA names no folder of data sets"
fi

calls='
import sys
import torch
import alphafuse_ext as af
device, items, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
semantic, ids = (torch.randn(items, 64, device=device).bfloat16() for _ in range(2))
queries = (torch.randn(batch, 128, device=device) / 11).bfloat16().requires_grad_()
ids.requires_grad_()
targets = torch.randint(items, (batch,), device=device)
af.cross_entropy(queries, targets, semantic, ids).backward()
with torch.no_grad():
    print(af.topk(queries, 20, semantic, ids).indices.sum().item())
'
if $dry; then
    step profile 60 "$python" -c "$calls" cpu 500 20
elif command -v ncu > /dev/null; then
    step profile 120 ncu --kernel-name-base demangled --kernel-name regex:'alphafuse::cuda' \
        --set detailed "$python" -c "$calls" cuda 1000000 1024
else
    leave_out profile "no ncu here"
fi
step topk 60 bash -c 'cmake --build "$0" --target test_topk_ways && "$0/test_topk_ways"' "$native"

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -1)
if ! $dry && [ "$capability" = 9.0 ]; then
    listed=$(declare -p programs sizes)
    step wgmma 300 bash -c "$listed"'
        set -e
        cmake -S . -B build/wgmma -G Ninja -DALPHAFUSE_CUDA=1 -DALPHAFUSE_CUDA_ARCHS=90 \
            -DALPHAFUSE_WGMMA=1 -DALPHAFUSE_PYTHON=OFF > /dev/null
        native_tests build/wgmma
        ALPHAFUSE_WGMMA=1 "$0" -m pip install --no-build-isolation --no-deps --target build/wgmma-site .
        PYTHONPATH=build/wgmma-site "$0" bench/scoring.py --device cuda --dtype bfloat16 "${sizes[@]}" \
            --ops cross_entropy score_all' "$python"
else
    leave_out wgmma "no GPU of compute capability 9.0"
fi

printf '\n=== summary, %s s\n' "$SECONDS"
cat "$out/gpu-summary.txt"
exit "$failed"
