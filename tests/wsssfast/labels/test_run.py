"""From CAM shards to label shards: the rule, what is stored, resuming, and the scores of it."""

import numpy as np
import pytest
from support import bytes_of, folder_dataset

from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.evaluate import LabelScorer, evaluate_cams, evaluate_labels
from wsssfast.labels.options import LabelOptions
from wsssfast.labels.run import export_labels
from wsssfast.shards import CamRecord, CamShards, LabelShards, verify_shards, write_cam_shard
from wsssfast.shards.run import Filling
from wsssfast.threshold import threshold

IDENTITY = {
    "class_names": ["cat", "dog", "cow"], "stages": ["original", "final"], "scales": [1.0, 0.5],
    "shard_size": 2, "weights": "abc",
}  # fmt: skip
SIZES = ((40, 32), (40, 32), (1, 1), (33, 47), (64, 24))  # (width, height) of im0 to im4
LABELS = ((0, 2), (), (1,), (0, 1, 2), (2,))


def record(n, seed=0):
    """CAMs on a coarse grid with whole steps, so that maps have exact ties with one another."""
    rng = np.random.RandomState(10 * n + seed)
    grids = {
        stage: [rng.randint(0, 5, (len(LABELS[n]), h, w)).astype(np.float32)
                for h, w in ((4, 5), (2, 3))]
        for stage in IDENTITY["stages"]
    }  # fmt: skip
    width, height = SIZES[n]
    return CamRecord(f"im{n}", (height, width), LABELS[n], grids)


def write_cams(folder, index, numbers, failed=None, seed=0, **identity):
    folder.mkdir(exist_ok=True)
    return write_cam_shard(
        folder, index, 3, [record(n, seed) for n in numbers], failed=failed or {},
        identity=IDENTITY | identity, epsilons={"original": 1e-8, "final": 1e-9},
        config={"split": "train"}, versions={},
    )  # fmt: skip


@pytest.fixture
def cams(tmp_path):
    write_cams(tmp_path / "cams", 0, [0, 1])
    write_cams(tmp_path / "cams", 1, [2, 3])
    write_cams(tmp_path / "cams", 2, [4], {"im5": "truncated"})
    return CamShards(tmp_path / "cams")


def by_hand(labels, maps, low, high):
    """The rule pixel by pixel."""
    low, high = np.float32(low), np.float32(high)
    mask = np.zeros(maps.shape[1:], np.uint8)
    for y, x in np.ndindex(mask.shape):
        values = maps[:, y, x].tolist()
        if values and max(values) > low:
            best = values.index(max(values))  # the first of equal ones
            mask[y, x] = labels[best] + 1 if max(values) > high else 255
    return mask


def test_ties_go_to_background_and_to_the_first_class():
    labels = np.array([1, 4])
    maps = np.array([[[0.3, 0.5, 0.2, 0.4]], [[0.3, 0.5, 0.6, 0.3]]], np.float32)
    assert threshold(labels, maps, (0.3,)).tolist() == [[0, 2, 5, 2]]
    assert threshold(labels, maps, (0.3, 0.5)).tolist() == [[0, 255, 5, 255]]
    assert threshold(labels, maps, (0.0, 1.0)).tolist() == [[255] * 4]
    assert threshold(labels[:0], maps[:0], (0.3,)).tolist() == [[0] * 4]


@pytest.mark.parametrize("background", [(0.0,), (0.35,), (1.0,), (0.2, 0.6), (0.0, 1.0)])
@pytest.mark.parametrize("stage", ["original", "final"])
def test_masks_are_the_thresholded_cams(cams, tmp_path, background, stage):
    summary = export_labels(cams, tmp_path / "out", LabelOptions(stage, background))
    assert (summary.images, summary.written_shards) == (5, 3)
    assert summary.failed == {"im5": "truncated"}
    assert summary.bytes == sum(map(len, bytes_of(tmp_path / "out").values()))
    assert not verify_shards(tmp_path / "out").problems
    shards = LabelShards(tmp_path / "out")
    assert (shards.ids, shards.failed) == (cams.ids, cams.failed)
    assert shards.class_names == cams.class_names
    for n, image_id in enumerate(shards):
        labels, maps = cams.cam(image_id, stage)
        wanted = by_hand(labels, maps, background[0], background[-1])
        assert np.array_equal(shards.mask(image_id), wanted)
        assert np.array_equal(cams.mask(image_id, background, stage), wanted)
        assert shards.labels(image_id).tolist() == list(LABELS[n])
    assert not shards.mask("im1").any()
    for index, sidecar in shards.sidecars.items():
        source = cams.sidecars[index]
        assert (sidecar.ids, sidecar.count) == (source.ids, source.count)
        assert sidecar.failed == source.failed


def test_the_identity_holds_all_that_made_the_masks(cams, tmp_path):
    export_labels(cams, tmp_path / "out", LabelOptions("final", (0.2, 0.6)))
    shards = LabelShards(tmp_path / "out")
    assert shards.identity == {
        "format_version": 1, "class_names": IDENTITY["class_names"], "stage": "final",
        "background": [0.2, 0.6], "refine": "none", "cams.scales": [1.0, 0.5],
        "cams.shard_size": 2, "cams.weights": "abc",
    }  # fmt: skip
    sidecar = shards.sidecars[1]
    assert sidecar.config["cams"] == {"split": "train"}
    assert sidecar.config["cams_sha256"] == cams.sidecars[1].file_sha256


def test_resuming_skips_what_is_done_and_ends_with_the_same_bytes(cams, tmp_path):
    options = LabelOptions("final", (0.4,))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    export_labels(cams, whole, options)
    export_labels(cams, cut, options)
    (cut / "labels-00001-of-00003.json").unlink()  # killed before the sidecar
    (cut / "labels-00002-of-00003.h5").unlink()
    (cut / ".labels-00000-of-00003.h5.77.partial").write_bytes(b"half")
    told = []
    summary = export_labels(
        cams, cut, options, filling=Filling(watch=lambda event, facts: told.append(facts))
    )
    assert (summary.images, summary.skipped_shards, summary.written_shards) == (5, 1, 2)
    assert (told[-1]["images"], told[-1]["of"]) == (6, 6)
    assert not (cut / ".labels-00000-of-00003.h5.77.partial").exists()
    assert bytes_of(cut) == bytes_of(whole)
    again = export_labels(cams, cut, options)
    assert (again.skipped_shards, again.failed) == (3, {"im5": "truncated"})


def test_a_shard_is_redone_when_its_cams_were(cams, tmp_path):
    options = LabelOptions("final", (0.4,))
    out = tmp_path / "out"
    export_labels(cams, out, options)
    write_cams(cams.folder, 0, [0, 1], seed=1)
    write_cams(cams.folder, 2, [4], {"im5": "no CAM"})  # the same file, another reason
    redone = CamShards(cams.folder)
    summary = export_labels(redone, out, options)
    assert (summary.skipped_shards, summary.written_shards) == (1, 2)
    shards = LabelShards(out)
    assert shards.failed == {"im5": "no CAM"}
    assert np.array_equal(shards.mask("im0"), redone.mask("im0", 0.4))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"stage": "original"}, "stage (there"),
        ({"background": (0.5,)}, "background (there [0.4], now [0.5])"),
        ({"background": (0.4, 0.5)}, "background (there [0.4], now [0.4,0.5])"),
    ],
)
def test_another_configuration_is_refused_by_the_key_that_differs(cams, tmp_path, change, key):
    options = {"stage": "final", "background": (0.4,)}
    export_labels(cams, tmp_path / "out", LabelOptions(**options))
    before = bytes_of(tmp_path / "out")
    with pytest.raises(WsssError) as caught:
        export_labels(cams, tmp_path / "out", LabelOptions(**{**options, **change}))
    assert key in caught.value.message
    assert "--overwrite" in caught.value.remedy
    assert bytes_of(tmp_path / "out") == before
    export_labels(
        cams,
        tmp_path / "out",
        LabelOptions(**{**options, **change}),
        filling=Filling(overwrite=True),
    )


def test_other_cams_and_other_folders_are_refused(cams, tmp_path):
    options = LabelOptions("final", (0.4,))
    export_labels(cams, tmp_path / "out", options)
    write_cams(tmp_path / "other", 0, [0, 1], weights="xyz")
    with pytest.raises(WsssError, match=r"cams\.weights \(there \"abc\", now \"xyz\"\)"):
        export_labels(CamShards(tmp_path / "other"), tmp_path / "out", options)
    with pytest.raises(WsssError, match="--no-resume"):
        export_labels(cams, tmp_path / "out", options, filling=Filling(resume=False))
    with pytest.raises(WsssError, match="for label shards alone, found CAM shards"):
        export_labels(cams, cams.folder, options)
    with pytest.raises(WsssError, match="a stage out of original, final"):
        export_labels(cams, tmp_path / "new", LabelOptions("modulated", (0.4,)))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "background", [(), (0.1, 0.2, 0.3), (0.5, 0.5), (0.6, 0.4), (-0.1,), (1.1,), (float("nan"),)]
)
def test_thresholds_that_make_no_sense_are_refused(background):
    with pytest.raises(WsssError, match="Expected one background threshold in"):
        LabelOptions("final", background)


def test_missing_cam_shards_are_left_out_until_they_are_there(cams, tmp_path):
    (cams.folder / "cams-00001-of-00003.json").unlink()
    options = LabelOptions("final", (0.4,))
    summary = export_labels(CamShards(cams.folder), tmp_path / "out", options)
    assert (summary.images, summary.written_shards) == (3, 2)
    shards = LabelShards(tmp_path / "out")
    assert (shards.missing_shards, shards.missing_names) == ([1], ["labels-00001-of-00003"])
    write_cams(cams.folder, 1, [2, 3])
    summary = export_labels(CamShards(cams.folder), tmp_path / "out", options)
    assert (summary.images, summary.skipped_shards, summary.written_shards) == (5, 2, 1)
    assert LabelShards(tmp_path / "out").ids == cams.ids


@pytest.fixture
def truth(tmp_path):
    return open_dataset("folder", folder_dataset(tmp_path / "data", SIZES))


def test_scores_equal_those_of_the_sweep_at_the_same_threshold_exactly(cams, truth, tmp_path):
    sweep = evaluate_cams(cams, truth, ["final"])[0]["final"]
    curve = dict(map(tuple, sweep["curve"]))
    for score in (0.0, 0.29, 0.5, sweep["threshold"]):
        out = tmp_path / str(score)
        export_labels(cams, out, LabelOptions("final", (score,)))
        result, failed = evaluate_labels(LabelShards(out), truth)
        assert failed == {}  # im5 could not be exported, but is not of this data set
        assert result["miou"] == curve[score]
        assert (result["coverage"], result["ignored"]) == (1.0, "background")
    for key in result.keys() - {"coverage", "ignored"}:
        assert result[key] == sweep[key], key
    assert {"fp", "fn", "per_class", "absent_classes", "images"} <= result.keys()


def plain_scores(pairs, ignored):
    """mIoU and coverage of [(predicted, truth)] by counting pixels one by one."""
    counts = {c: [0, 0, 0] for c in range(4)}
    covered = total = 0
    for predicted, truth in pairs:
        for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if t == 255:
                continue
            total += 1
            covered += p != 255
            if p == 255 and ignored == "skip":
                continue
            p = 0 if p == 255 else p
            counts[t][0] += 1
            counts[p][1] += 1
            counts[t][2] += p == t
    iou = [tp / (t + p - tp) for t, p, tp in counts.values() if t + p]
    return sum(iou) / len(iou), covered / total


@pytest.mark.parametrize("ignored", ["background", "skip"])
def test_ignored_pixels_count_as_background_or_are_left_out(cams, truth, tmp_path, ignored):
    export_labels(cams, tmp_path / "out", LabelOptions("final", (0.3, 0.6)))
    shards = LabelShards(tmp_path / "out")
    result, _ = evaluate_labels(shards, truth, ignored)
    pairs = [(shards.mask(i), truth.load_mask(truth.by_id[i])) for i in shards]
    miou, coverage = plain_scores(pairs, ignored)
    assert result["miou"] == pytest.approx(miou, rel=1e-12)
    assert result["coverage"] == coverage
    assert 0.1 < coverage < 0.9


def test_counts_stay_exact_beyond_32_bits():
    scorer = LabelScorer(("a",))
    scorer.add(np.array([[1, 1, 255]], np.uint8), np.array([[1, 0, 1]], np.uint8))
    scorer._seen *= 1 << 40
    assert scorer.result()["per_class"] == {"background": 0.0, "a": 1 / 3}
    assert scorer.result("skip")["per_class"] == {"background": 0.0, "a": 1 / 2}
    assert scorer.result()["coverage"] == 2 / 3


def test_masks_that_do_not_fit_and_empty_counts():
    scorer = LabelScorer(("a",))
    assert scorer.result()["coverage"] == 0.0
    with pytest.raises(WsssError, match=r"size \[2, 3\], found \[3, 2\]"):
        scorer.add(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    with pytest.raises(WsssError, match="up to 1 and 255, found 7"):
        scorer.add(np.zeros((1, 1), np.uint8), np.array([[7]], np.uint8))
    scorer.add(np.ones((1, 1), np.uint8), np.array([[255]], np.uint8))
    assert scorer.result()["absent_classes"] == ["background", "a"]
