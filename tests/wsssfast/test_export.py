"""Export: what is stored, resuming, refusing to mix, bad files, and independence of batching."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support import bytes_of, folder_dataset, random_image, run_with_little_room, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.compute import stage_grids
from wsssfast.data import open_dataset
from wsssfast.data.unlabelled import open_unlabelled
from wsssfast.errors import WsssError
from wsssfast.export import export_cams
from wsssfast.kernels import STAGES
from wsssfast.models.checkpoint import save_model
from wsssfast.notebook import cams
from wsssfast.preprocess import to_tensor
from wsssfast.shards import open_shards, verify_shards
from wsssfast.shards.run import Filling

ALL = CamOptions(stages=STAGES, scales=(1.0, 0.75, 1.25))


@pytest.fixture
def data(tmp_path):
    return open_dataset("folder", folder_dataset(tmp_path / "data"))


def test_shards_hold_the_cams_of_direct_computation(data, tmp_path):
    model = tiny_model()
    summary = export_cams(model, data, tmp_path / "out", ALL, shard_size=3)
    assert (summary.images, summary.written_shards, summary.failed) == (4, 2, {})
    assert not verify_shards(tmp_path / "out").problems
    shards = open_shards(tmp_path / "out")
    assert shards.ids == tuple(item.id for item in data)
    for item in data:
        for stage in STAGES:
            labels, maps = shards.cam(item.id, stage)
            assert labels.tolist() == list(item.labels)
            wanted = cams(model, [data.load_image(item)], [item.labels], ALL, stage=stage)[0]
            # half a step (7.7e-6) in value, minimum and maximum, and the rounding of a batch of 2
            assert np.abs(maps - wanted).max() <= 5e-5


def test_every_stage_agrees_with_float64_by_the_reference(data):
    """The float32 path against the float64 reference, end to end, random network."""
    model = tiny_model()
    item = data.items[2]
    image = data.load_image(item)
    fast = stage_grids(model, [image], [item.labels], ALL)[0]

    precise = tiny_model().double()
    capture = precise.capture
    precise.capture = lambda x, *args: capture(x.double(), *args)
    slow = stage_grids(precise, [image], [item.labels], ALL, backend="reference")[0]
    for stage in STAGES:
        for a, b in zip(fast[stage], slow[stage], strict=True):
            assert np.abs(a - b).max() <= 1e-4 * np.ptp(b), stage


def test_the_composition_of_batches_does_not_matter(data, tmp_path):
    model = tiny_model()
    export_cams(model, data, tmp_path / "one", ALL, batch_size=1, decode_workers=1)
    export_cams(model, data, tmp_path / "many", ALL, batch_size=8, decode_workers=3)
    one, many = open_shards(tmp_path / "one"), open_shards(tmp_path / "many")
    for item in data:
        a, b = one.cam(item.id)[1], many.cam(item.id)[1]
        assert np.abs(a - b).max() <= 2e-5
    export_cams(model, data, tmp_path / "again", ALL, batch_size=8, decode_workers=1)
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "many")


def test_flips_are_summed_on_the_patch_grid_exactly(data):
    image = data.load_image(data.items[0])
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    options = CamOptions(flip=False)
    both = cams(tiny_model(), [image], [[0]], CamOptions())[0]
    parts = [
        stage_grids(tiny_model(), [i], [(0,)], options)[0]["final"][0] for i in (image, mirrored)
    ]
    upsampled = [
        torch.nn.functional.interpolate(
            torch.from_numpy(p)[None], (image.height, image.width), mode="bilinear"
        )[0].numpy()
        for p in parts
    ]
    summed = upsampled[0] + upsampled[1][..., ::-1]
    wanted = (summed - summed.min()) / (summed.max() - summed.min())
    assert np.abs(both - wanted).max() <= 1e-5


def test_resuming_skips_what_is_done_and_ends_with_the_same_bytes(data, tmp_path):
    model = tiny_model()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    export_cams(model, data, whole, ALL, shard_size=1)
    export_cams(model, data, cut, ALL, shard_size=1)
    (cut / "cams-00002-of-00004.json").unlink()  # killed before the sidecar
    (cut / "cams-00003-of-00004.h5").unlink()
    (cut / ".cams-00001-of-00004.h5.77.partial").write_bytes(b"half")
    summary = export_cams(model, data, cut, ALL, shard_size=1)
    assert (summary.skipped_shards, summary.written_shards) == (2, 2)
    assert not (cut / ".cams-00001-of-00004.h5.77.partial").exists()
    assert bytes_of(cut) == bytes_of(whole)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"ratio": 0.4}, "ratio (there 0.3, now 0.4)"),
        ({"alpha": 0.0}, "alpha"),
        ({"scales": (1.0,)}, "scales"),
        ({"flip": False}, "flip"),
        ({"propagation": "scatter"}, "propagation"),
        ({"related_by": "tokens"}, "related_by"),
        ({"include_self": False}, "include_self"),
        ({"c2p_layers": 1}, "c2p_layers"),
        ({"p2p_layers": 4}, "p2p_layers"),
        ({"stages": ("final",)}, "stages"),
        ({"precision": "bf16"}, "precision"),
    ],
)
def test_another_configuration_is_refused_by_the_key_that_differs(data, tmp_path, change, key):
    model = tiny_model()
    export_cams(model, data, tmp_path / "out", ALL)
    before = bytes_of(tmp_path / "out")
    options = CamOptions(**{**vars(ALL), **change})
    with pytest.raises(WsssError) as caught:
        export_cams(model, data, tmp_path / "out", options)
    assert key in caught.value.message
    assert "--overwrite" in caught.value.remedy
    assert bytes_of(tmp_path / "out") == before


def test_other_weights_data_and_shard_sizes_are_refused_too(data, tmp_path):
    export_cams(tiny_model(), data, tmp_path / "out", ALL)
    with pytest.raises(WsssError, match="weights"):
        export_cams(tiny_model(seed=1), data, tmp_path / "out", ALL)
    with pytest.raises(WsssError, match="shard_size"):
        export_cams(tiny_model(), data, tmp_path / "out", ALL, shard_size=2)
    other = open_dataset("folder", folder_dataset(tmp_path / "other", sizes=((40, 32),)))
    with pytest.raises(WsssError, match="dataset"):
        export_cams(tiny_model(), other, tmp_path / "out", ALL)
    export_cams(tiny_model(seed=1), data, tmp_path / "out", ALL, filling=Filling(overwrite=True))
    with pytest.raises(WsssError, match="--no-resume"):
        export_cams(tiny_model(seed=1), data, tmp_path / "out", ALL, filling=Filling(resume=False))


def test_bad_images_are_listed_and_the_rest_is_done(tmp_path):
    root = folder_dataset(tmp_path / "data", sizes=[(40, 32)] * 6, extension="jpg")
    whole = (root / "images" / "im1.jpg").read_bytes()
    (root / "images" / "im1.jpg").write_bytes(whole[: len(whole) // 2])  # truncated
    (root / "images" / "im2.jpg").write_bytes(b"")
    (root / "images" / "im3.jpg").write_text("not an image")
    data = open_dataset("folder", root)
    out = tmp_path / "out"
    summary = export_cams(tiny_model(), data, out, ALL)
    assert sorted(summary.failed) == ["im1", "im2", "im3"]
    assert open_shards(out).ids == ("im0", "im4", "im5")
    sidecar = json.loads((out / "cams-00000-of-00001.json").read_text())
    assert sidecar["failed"] == summary.failed

    again = export_cams(tiny_model(), data, out, ALL)
    assert (again.skipped_shards, again.failed) == (1, summary.failed)
    (root / "images" / "im1.jpg").write_bytes(whole)  # mended: only then the shard is redone
    mended = export_cams(tiny_model(), data, out, ALL)
    assert (mended.written_shards, sorted(mended.failed)) == (1, ["im2", "im3"])


def test_tiny_images_and_images_without_classes(tmp_path):
    root = folder_dataset(tmp_path / "data", sizes=[(1, 1), (1, 50), (3, 200)])
    rows = (root / "labels.csv").read_text().splitlines()
    (root / "labels.csv").write_text("\n".join([*rows[:3], rows[3].split(",")[0] + ","]) + "\n")
    data = open_dataset("folder", root)
    export_cams(tiny_model(), data, tmp_path / "out", ALL)
    shards = open_shards(tmp_path / "out")
    assert shards.cam("im0")[1].shape[1:] == (1, 1)
    assert shards.cam("im1")[1].shape[1:] == (50, 1)
    assert shards.cam("im2")[1].shape == (0, 200, 3)
    assert not verify_shards(tmp_path / "out").problems


def test_a_model_of_other_classes_is_refused(data, tmp_path):
    with pytest.raises(WsssError, match="3 classes, found one of 2"):
        export_cams(tiny_model(classes=("cat", "dog")), data, tmp_path / "out", ALL)
    with pytest.raises(WsssError, match="'cow' against 'dog'"):
        export_cams(tiny_model(classes=("cat", "cow", "dog")), data, tmp_path / "out", ALL)
    assert not (tmp_path / "out").exists()


def test_a_model_without_patch_head_has_no_original_cam(data, tmp_path):
    model = tiny_model(patch_head=False)
    with pytest.raises(WsssError, match="patch head for the stage 'original'"):
        export_cams(model, data, tmp_path / "out", ALL)
    options = CamOptions(stages=("original+c2p", "final"))
    export_cams(model, data, tmp_path / "out", options)
    assert open_shards(tmp_path / "out").stages == ("original+c2p", "final")


def test_more_shards_than_names_can_tell_apart_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr("wsssfast.export.MOST_SHARDS", 3)
    with pytest.raises(WsssError, match="at most 3 shards, found 4"):
        export_cams(tiny_model(), data, tmp_path / "out", ALL, shard_size=1)


@pytest.mark.parametrize(
    ("patch_head", "changes"), [(True, {}), (True, {"patch_decay": 0.8}), (False, {})]
)
def test_predicted_labels_are_those_of_the_scores(data, tmp_path, patch_head, changes):
    model = tiny_model(patch_head=patch_head, **changes)
    item = data.items[2]
    pixels = to_tensor([data.load_image(item)], model.config)
    logits = [model(torch.cat([pixels, pixels.flip(-1)]))[0]]
    if patch_head:
        logits.append(model(torch.cat([pixels, pixels.flip(-1)]))[1])
    scores = torch.stack(logits).sigmoid().mean((0, 1))
    above = scores.sort().values[1].item() + 1e-6  # one class of three
    bare = open_unlabelled("folder", tmp_path / "data", None, data.class_names)
    assert all(item.labels == () for item in bare)
    options = CamOptions(scales=(1.0, 0.5), predict_above=above)
    export_cams(model, bare, tmp_path / "out", options)
    labels, maps = open_shards(tmp_path / "out").cam(item.id)
    assert labels.tolist() == [int(scores.argmax())]
    wanted = cams(model, [data.load_image(item)], [labels.tolist()], CamOptions(scales=(1.0, 0.5)))
    assert np.abs(maps - wanted[0]).max() <= 1e-4
    with pytest.raises(WsssError, match="labels"):
        export_cams(model, data, tmp_path / "out", CamOptions(scales=(1.0, 0.5)))
    for above, count in ((0.0, 3), (1.0, 0)):
        options = CamOptions(predict_above=above)
        export_cams(model, bare, tmp_path / f"{count}", options)
        assert [len(open_shards(tmp_path / f"{count}").labels(i.id)) for i in bare] == [count] * 4


def test_what_happens_is_told(data, tmp_path):
    told = []
    export_cams(
        tiny_model(), data, tmp_path / "out", CamOptions(), shard_size=2, batch_size=1,
        filling=Filling(watch=lambda event, facts: told.append((event, facts))),
    )  # fmt: skip
    events = [event for event, _ in told]
    assert events[0] == "begin" and events[-1] == "end"
    assert (events.count("images"), events.count("shard")) == (4, 2)
    end = told[-1][1]
    assert (end["images"], end["of"], end["failed"], end["written_shards"]) == (4, 4, 0, 2)
    assert 0 < sum(end["waiting"].values()) <= 1 and end["seconds_left"] == 0
    assert json.dumps(told)
    del told[:]
    export_cams(
        tiny_model(), data, tmp_path / "out", CamOptions(), shard_size=2, batch_size=1,
        filling=Filling(watch=lambda event, facts: told.append((event, facts))),
    )  # fmt: skip
    end = told[-1][1]  # nothing was left to do
    assert (end["images"], end["images_per_second"], end["seconds_left"]) == (4, 0, None)


def test_a_full_disk_is_told_and_the_run_can_go_on(data, tmp_path):
    """HDF5 itself would crash."""
    save_model(tiny_model(), tmp_path / "m.safetensors")
    out = tmp_path / "out"
    words = [
        "export-cams", "--dataset", "folder", "--data-root", tmp_path / "data", "--shard-size", 2,
        "--checkpoint", tmp_path / "m.safetensors", "--out", out,
    ]  # fmt: skip
    for limit, code in ((3000, 2), (10**7, 0)):
        found = run_with_little_room(limit, words)
        assert found.returncode == code, found.stderr
        if code:
            assert found.stderr.startswith("Error: Expected room") and found.stderr.count("\n") == 1
            assert [path.name for path in out.iterdir()] == [".wsssfast.lock"]
    assert not verify_shards(out).problems
    assert len(open_shards(out)) == 4


def test_public_names_work_again_and_again(data):
    import wsssfast

    for _ in range(2):
        maps = wsssfast.cams(tiny_model(), [random_image(20, 30)], [["dog", 0]])
        assert maps[0].shape == (2, 30, 20)
    assert wsssfast.kernels.refine is not None
    with pytest.raises(WsssError, match="list of classes"):
        wsssfast.cams(tiny_model(), [random_image(20, 30)], ["dog"])
    with pytest.raises(WsssError, match="without predict_above"):
        wsssfast.cams(
            tiny_model(), [random_image(20, 30)], [["dog"]], CamOptions(predict_above=0.5)
        )
    with pytest.raises(WsssError, match="found 'original'"):
        wsssfast.cams(tiny_model(), [random_image(20, 30)], [["dog"]], stage="original")
    turned = Image.new("RGB", (40, 16))
    turned.getexif()[0x0112] = 6
    assert wsssfast.cams(tiny_model(), [turned], [[0]])[0].shape == (1, 40, 16)


def test_a_public_checkpoint_serves_other_classes_of_the_same_number(data, tmp_path):
    model = tiny_model(classes=("class0", "class1", "class2"), names_assumed=True)
    export_cams(model, data, tmp_path / "out", CamOptions())
    assert open_shards(tmp_path / "out").class_names == data.class_names


@pytest.mark.parametrize(
    "wrong",
    [{"stages": ("finale",)}, {"stages": ()}, {"scales": ()}, {"scales": (0.0,)}, {"ratio": 0.0},
     {"ratio": float("nan")}, {"alpha": -1.0}, {"c2p_layers": 0}],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(WsssError, match="Expected"):
        CamOptions(**wrong)
