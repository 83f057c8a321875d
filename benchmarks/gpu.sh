#!/usr/bin/env bash
# Tests and times the kernels on the GPU of this machine in under 10 minutes, offline.
#
#     bash benchmarks/gpu.sh
#     DATA=DIR DATASET=folder bash benchmarks/gpu.sh     # the export from JPEG files too
#
# Every part goes on when another fails; the script then ends with 1. One table comes last. JSON and
# logs go to $OUT, or to benchmarks/results/<the GPU's name>. Installs into .device where wsssfast
# is not installed. DATASET is folder, voc or coco; SPLIT and LABELS as of `wsssfast export-cams`.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 TQDM_DISABLE=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()

# part NAME SECONDS COMMAND...: runs it within a time limit, its output into the log
part() {
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    echo "== $name: $*" >>"$work/log.txt"
    if timeout --kill-after=10 "$limit" "$@" >"$work/part.txt" 2>&1; then
        echo "$name: done in $((SECONDS - start)) s"
    else
        local code=$?
        echo "$name: FAILED with $code after $((SECONDS - start)) s; the end of its output:"
        tail -n 15 "$work/part.txt"
        failed+=("$name")
    fi
    cat "$work/part.txt" >>"$work/log.txt"
}

# Away from the sources, or their folders would be taken for the packages.
if ! (cd / && "$PYTHON" -P -c 'import wsssfast.kernels') 2>/dev/null; then
    rm -rf .device build/lib build/bdist.*
    part install 30 "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation \
        --target .device .
    export PYTHONPATH="$PWD/.device${PYTHONPATH:+:$PYTHONPATH}"
fi
run=("$PYTHON" -P)
"${run[@]}" benchmarks/gpu.py missing || failed+=("missing")
name=$("${run[@]}" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))') ||
    { echo "No CUDA device was found by PyTorch."; exit 2; }
OUT=${OUT:-benchmarks/results/$name}
mkdir -p "$OUT"

bench=("${run[@]}" -m wsssfast bench --device cuda)
small=(--classes 20 --size 224x224,448x448) # N = 196 and 784
large=(--classes 80 --size 768x768)         # N = 2304

# The limits add up to less than 10 minutes. Cases that --limit leaves out are listed as such; those
# of float32 take longest and come last. A warning of another package here is no failure.
pytest=("${run[@]}" -m pytest -q -p no:cacheprovider -W default)
part tests-gpu 95 "${pytest[@]}" -m gpu tests/cli/test_on_gpu.py tests/wsssfast/test_bench.py
part tests-kernels 55 "${pytest[@]}" -m "not slow and not gpu" tests/kernels
part forward-20 55 "${bench[@]}" --what forward "${small[@]}" --precision bf16,fp16,fp32 \
    --no-compile --seconds 1 --limit 38 --json "$work/1-forward-20.json"
part forward-80 75 "${bench[@]}" --what forward "${large[@]}" --precision bf16,fp16,fp32 \
    --no-compile --seconds 1 --limit 38 --json "$work/2-forward-80.json"
part compiled-20 65 "${bench[@]}" --what forward "${small[@]}" --batch 16 --precision bf16 \
    --seconds 1 --limit 25 --json "$work/3-compiled-20.json"
part compiled-80 50 "${bench[@]}" --what forward "${large[@]}" --batch 16 --precision bf16 \
    --seconds 1 --limit 25 --json "$work/4-compiled-80.json"
part operations-20 45 "${bench[@]}" --what operations "${small[@]}" --precision bf16,fp32 \
    --seconds 0.3 --limit 30 --json "$work/5-operations-20.json"
part operations-80 45 "${bench[@]}" --what operations "${large[@]}" --precision bf16,fp32 \
    --seconds 0.3 --limit 28 --json "$work/6-operations-80.json"
part crf 35 "${run[@]}" benchmarks/crf_gpu.py --json "$OUT/crf.json"
if [ -n "${DATA:-}" ] && [ -d "$DATA" ]; then
    part export 45 "${run[@]}" benchmarks/gpu.py export --data "$DATA" \
        --dataset "${DATASET:-folder}" ${SPLIT:+--split "$SPLIT"} ${LABELS:+--labels "$LABELS"} \
        --json "$work/7-export.json"
elif [ -n "${DATA:-}" ]; then
    echo "export: FAILED, no folder $DATA"
    failed+=(export)
fi

cp "$work/log.txt" "$OUT/gpu.log"
echo
"${run[@]}" benchmarks/gpu.py table "$work"/[1-7]-*.json --json "$OUT/kernels.json" ||
    failed+=(table)
if [ ${#failed[@]} -gt 0 ]; then
    echo "Failed: ${failed[*]} (see $OUT/gpu.log)"
    exit 1
fi
