"""Lists of images for the tables of docs/evidence.md, out of VOC's train_aug and val.

    python benchmarks/split.py --data-root VOCdevkit/VOC2012 --out lists

`unseen.txt` has every second of the sorted ids of val, from the first. `train.txt` has the others,
and of train_aug all images with a label besides cat and dog and every third of the rest: in the
copy that we test on, those two are labels of two thirds of the images, and several classes of none.
"""

import argparse
from pathlib import Path

from wsssfast.data import open_dataset

PLENTIFUL = {"cat", "dog"}


def main() -> None:
    """Write both lists."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    train, val = (open_dataset("voc", args.data_root, split) for split in ("train_aug", "val"))
    labels = {item.id: {train.class_names[c] for c in item.labels} for item in train.items}
    ids = sorted(item.id for item in val.items)
    rest = [i for i in sorted(labels) if labels[i] <= PLENTIFUL]
    chosen = [i for i in labels if not labels[i] <= PLENTIFUL] + rest[::3] + ids[1::2]
    args.out.mkdir(parents=True, exist_ok=True)
    for name, found in (("train.txt", sorted(chosen)), ("unseen.txt", ids[::2])):
        (args.out / name).write_text("".join(f"{image_id}\n" for image_id in found))
        print(f"{args.out / name}: {len(found)} images")


if __name__ == "__main__":
    main()
