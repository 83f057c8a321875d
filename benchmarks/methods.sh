#!/usr/bin/env bash
# Other methods on the same images, weights and schedule: trained, exported, scored.
#
#     DATA=VOCdevkit/VOC2012 WEIGHTS=deit_tiny.pth bash benchmarks/methods.sh ts-cam mctformer-plus
#
# METHOD is one of mctformer-v1, mctformer-v2, mctformer-plus, ts-cam, weaktr (all, if none is
# named). What the recipe of a method says about its network and its CAMs is kept; the schedule is
# `train --recipe cpu` for all. Training resumes; scores and seconds go to $OUT/METHOD-*.json.
# `DATASET=synthetic TRAIN=train:32 VAL=val:8 EPOCHS=1 PRECISION=fp32` tries the script itself.
set -euo pipefail
cd "$(dirname "$0")/.."

DATASET=${DATASET:-voc} TRAIN=${TRAIN:-train_aug} VAL=${VAL:-val} WEIGHTS=${WEIGHTS:-none}
SEED=${SEED:-0} WORK=${WORK:-/tmp/wsssfast-methods} OUT=${OUT:-$WORK/scores}
data=(--dataset "$DATASET")
[ "$DATASET" = synthetic ] || data+=(--data-root "$DATA")
mkdir -p "$WORK" "$OUT"

network() { # METHOD: what its train recipe has beside the schedule
    case $1 in
    mctformer-v1) echo --no-patch-head ;;
    mctformer-v2) ;;
    mctformer-plus) echo --patch-decay 0.996 --split-positions --contrast 1.0 ;;
    ts-cam) echo --one-token --final-norm ;;
    weaktr) echo --adaptive-fusion ;;
    *) echo "expected a METHOD of this script's first lines, found $1" >&2 && exit 2 ;;
    esac
}

score() { # METHOD RECIPE: CAMs of $VAL by an export recipe, and their mIoU
    local cams=$WORK/$1-$2-cams
    wsssfast export-cams --recipe "$2" --checkpoint "$WORK/$1/last.safetensors" "${data[@]}" \
        --split "$VAL" --out "$cams"
    wsssfast evaluate cams "$cams" "${data[@]}" --split "$VAL" --json "$OUT/$1-$2.json"
}

[ $# -gt 0 ] || set -- mctformer-v1 mctformer-v2 mctformer-plus ts-cam weaktr
for method; do
    options=$(network "$method") start=$SECONDS
    wsssfast train --recipe cpu $options --precision "${PRECISION:-bf16}" "${data[@]}" \
        --split "$TRAIN" --pretrained "$WEIGHTS" --seed "$SEED" --loader-workers 1 \
        ${EPOCHS:+--epochs "$EPOCHS"} --out "$WORK/$method"
    echo "$method: $((SECONDS - start)) s of training" | tee -a "$OUT/seconds.txt"
    score "$method" "$method"
    [ "$method" = mctformer-v1 ] || score "$method" patch-cam
done
