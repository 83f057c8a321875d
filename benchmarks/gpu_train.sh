#!/usr/bin/env bash
# The paper's schedule on real data, from image labels to scored masks, offline on a GPU.
#
#     DATA=VOCdevkit/VOC2012 WEIGHTS=deit_tiny.pth bash benchmarks/gpu_train.sh
#
# Ends after $LIMIT seconds (570) with 4 where something is left to do: the same command goes on, as
# every stage resumes. Shards and checkpoints go to $WORK, scores and times to $OUT. DATA may also be
# a tar file, or its parts in order (`split -b 56m`), which are unpacked beside $WORK once. On a CPU,
# `DATASET=synthetic TRAIN=train:32 VAL=val:8 EPOCHS=5 DEVICE=cpu` tries the script itself.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
DATASET=${DATASET:-voc} TRAIN=${TRAIN:-train_aug} VAL=${VAL:-val} DEVICE=${DEVICE:-cuda}
ARCH=${ARCH:-deit_tiny_patch16_224} WEIGHTS=${WEIGHTS:-none} SEED=${SEED:-0}
WORK=${WORK:-/tmp/wsssfast-$SEED} OUT=${OUT:-benchmarks/results/gpu-train-$SEED}
deadline=$((SECONDS + ${LIMIT:-570}))
mkdir -p "$WORK" "$OUT"

if ! (cd / && "$PYTHON" -P -c 'import wsssfast.kernels') 2>/dev/null; then
    "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation --target "$WORK/package" .
    export PYTHONPATH="$WORK/package${PYTHONPATH:+:$PYTHONPATH}"
fi

root=()
if [ "$DATASET" != synthetic ]; then
    if [ ! -d "$DATA" ]; then
        [ -d "$WORK/data" ] || { mkdir "$WORK/data.partial"; cat "$DATA"* | tar x -C "$WORK/data.partial"; mv "$WORK/data.partial" "$WORK/data"; }
        DATA=$WORK/data
    fi
    root=(--data-root "$DATA")
fi
data=(--dataset "$DATASET" "${root[@]}")

# stage NAME COMMAND...: runs `wsssfast COMMAND` for what is left of the time; notes its seconds
stage() {
    local name=$1 start=$SECONDS left=$((deadline - SECONDS)) code=0
    shift
    [ "$left" -gt 5 ] || { echo "$name: no time is left"; exit 4; }
    timeout --kill-after=10 "$left" "$PYTHON" -P -m wsssfast "$@" >>"$OUT/$name.log" 2>&1 || code=$?
    echo "$name $((SECONDS - start)) s, exit $code" | tee -a "$OUT/times.txt"
    [ "$code" -ne 3 ] || code=0 # some images are unreadable: listed, and scored without them
    if [ "$code" -ne 0 ]; then
        tail -n 5 "$OUT/$name.log"
        [ "$SECONDS" -lt "$deadline" ] || exit 4
        exit "$code"
    fi
}

stage train train --recipe paper-voc --arch "$ARCH" --pretrained "$WEIGHTS" "${data[@]}" \
    --split "$TRAIN" --precision bf16 --seed "$SEED" --device "$DEVICE" \
    ${EPOCHS:+--epochs "$EPOCHS"} --out "$WORK/classifier" --json "$OUT/train.json"
classifier=$WORK/classifier/last.safetensors
stage ablate ablate --checkpoint "$classifier" "${data[@]}" --split "$VAL" --device "$DEVICE" \
    --out "$WORK/scores" --json "$OUT/ablate.json"
stage cams export-cams --checkpoint "$classifier" "${data[@]}" --split "$TRAIN" \
    --device "$DEVICE" --out "$WORK/cams"
stage labels export-labels --cams "$WORK/cams" "${data[@]}" --split "$TRAIN" --refine crf \
    --bilateral-sxy 50 --bilateral-srgb 5 --certainty 0.7 --background "${BACKGROUND:-0.4}" \
    --device "$DEVICE" --out "$WORK/labels"
stage evaluate-labels evaluate labels "$WORK/labels" "${data[@]}" --split "$TRAIN" \
    --json "$OUT/labels.json"
stage segmenter train-seg --label-shards "$WORK/labels" "${data[@]}" --split "$TRAIN" \
    --pretrained "$classifier" --precision bf16 --seed "$SEED" --device "$DEVICE" \
    ${EPOCHS:+--epochs "$EPOCHS"} --out "$WORK/segmenter"
stage predict predict --checkpoint "$WORK/segmenter/last.safetensors" "${data[@]}" \
    --split "$VAL" --recipe paper --device "$DEVICE" --out "$WORK/masks"
stage evaluate-masks evaluate seg "$WORK/masks" "${data[@]}" --split "$VAL" \
    --json "$OUT/masks.json"
cp "$WORK/classifier/options.json" "$OUT/options.json"
echo "done: $OUT"
