"""Parts of the report: chosen images, related patches, colours, scores, curves."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support import folder_dataset, random_image, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.data import open_dataset
from wsssfast.data.palette import mask_palette
from wsssfast.errors import WsssError
from wsssfast.evaluate import CamScorer
from wsssfast.export import export_cams
from wsssfast.kernels import reference
from wsssfast.preprocess import to_tensor
from wsssfast.report.attention import attention_maps, stored_options
from wsssfast.report.charts import Series, line_chart, ticks
from wsssfast.report.choose import choose
from wsssfast.report.colours import HEAT, heat_colours
from wsssfast.report.page import environment, write_page
from wsssfast.report.pictures import bright_patches, frame_patch, heat_overlay
from wsssfast.report.scores import parse_scores, read_scores
from wsssfast.report.training import training_charts
from wsssfast.shards import CamShards

SIZES = [(40, 32)] * 9


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    dataset = open_dataset("folder", folder_dataset(root / "data", SIZES), None, None)
    export_cams(tiny_model(), dataset, root / "cams", CamOptions())
    return CamShards(root / "cams"), dataset


def chosen(made, threshold=0.3, count=4, ids=()):
    shards, dataset = made
    failed = {}
    found = choose(shards, dataset, "final", threshold, count, ids, failed)
    assert failed == {}
    return found


def test_the_highest_the_middle_and_the_lowest_are_chosen(made):
    shards, dataset = made
    iou = {}
    for item in dataset:
        scorer = CamScorer(dataset.class_names, [0.3])
        scorer.add(*shards.cam(item.id), dataset.load_mask(item))
        iou[item.id] = scorer.result()["miou"]
    ranked = sorted(iou, key=lambda i: (-iou[i], i))
    found = chosen(made)
    assert [c.id for c in found] == [*ranked[:2], ranked[4], ranked[8]]
    assert [c.iou for c in found] == [iou[c.id] for c in found]
    assert [c.why.split()[-1] for c in found] == ["highest", "highest", "middle", "lowest"]
    for count in range(12):
        ids = [c.id for c in chosen(made, count=count)]
        assert len(set(ids)) == len(ids) == min(count, 9)
        assert ids == sorted(ids, key=ranked.index)


def test_without_scores_they_are_spread_and_ids_are_kept_in_order(made):
    assert [c.id for c in chosen(made, None, 3)] == ["im0", "im3", "im6"]
    assert [c.iou for c in chosen(made, None, 3)] == [None] * 3
    asked = chosen(made, ids=["im5", "im1", "im5"])
    assert [c.id for c in asked] == ["im5", "im1"]
    assert all(c.iou is not None and c.why == "" for c in asked)


@pytest.mark.parametrize(
    "changes", [{}, {"related_by": "tokens"}, {"include_self": False, "ratio": 0.1}], ids=str
)
def test_the_related_patches_marked_are_those_of_the_reference(changes):
    options = CamOptions(scales=(1.0, 0.5), **changes)
    model, image, label = tiny_model(), random_image(72, 56, 3), 1
    maps = attention_maps(model, image, label, options)
    captured = model.capture(to_tensor([image], model.config), 3, 12)
    similarity = captured.p2p
    if options.related_by == "tokens":
        similarity = reference.token_similarity(captured.tokens)
    count = reference.related_count(options.ratio, 7 * 9)
    related = reference.related_patches(similarity, count, options.include_self)
    final = reference.stage_maps(
        captured.cam.flatten(2), captured.c2p, captured.p2p, ["final"], similarity=similarity,
        ratio=options.ratio, alpha=options.alpha, include_self=options.include_self,
    )["final"]  # fmt: skip
    point = int(final[0, label].argmax())
    assert maps.point == (point // 9, point % 9)
    assert (maps.related.ravel() == related[0, point].numpy()).all()
    assert maps.related.sum() == count
    torch.testing.assert_close(maps.row.ravel(), captured.p2p[0, point].numpy(), atol=0, rtol=1e-5)
    after = captured.c2p + 1.2 * reference.related_mean(captured.c2p, related)
    np.testing.assert_allclose(maps.before.ravel(), captured.c2p[0, label], rtol=1e-5)
    np.testing.assert_allclose(maps.after.ravel(), after[0, label], rtol=1e-5)
    white = Image.new("RGB", (90, 70), "white")
    bright = np.asarray(bright_patches(white, maps.related))[..., 0] == 255
    assert (bright.reshape(7, 10, 9, 10).transpose(0, 2, 1, 3).all((2, 3)) == maps.related).all()
    assert (bright == maps.related.repeat(10, 0).repeat(10, 1)).all()
    framed = np.asarray(frame_patch(white, (7, 9), maps.point)) != 255
    rows, columns = framed.any((1, 2)).nonzero()[0], framed.any((0, 2)).nonzero()[0]
    assert abs(rows.mean() - (10 * maps.point[0] + 4.5)) <= 1.5
    assert abs(columns.mean() - (10 * maps.point[1] + 4.5)) <= 1.5


def test_options_come_back_from_the_identity_of_shards(made):
    options = CamOptions(ratio=0.2, scales=(1.0, 0.5), flip=False)
    assert stored_options({"weights": "x", **options.to_json()}) == options
    with pytest.raises(WsssError, match="options of an export"):
        stored_options({"ratio": "much"})


def test_heat_rises_in_lightness_and_masks_have_vocs_colours():
    colours = heat_colours(np.linspace(-0.5, 1.5, 501, dtype=np.float32))
    assert (colours[:125] == HEAT[0]).all() and (colours[-125:] == HEAT[-1]).all()
    light = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(light) >= 0).all()
    palette = mask_palette()
    assert palette[[0, 1, 2, 3, 4, 15, 20]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [192, 128, 128],
        [0, 64, 128],
    ]  # fmt: skip
    assert len({tuple(colour) for colour in palette.tolist()}) == 256
    grey = Image.new("RGB", (30, 20), (128, 128, 128))
    ramp = np.tile(np.linspace(0, 1, 15, dtype=np.float32), (4, 1))
    shown = np.asarray(heat_overlay(grey, ramp)).astype(int)
    assert shown.shape == (20, 30, 3)
    assert shown[:, 0, 2].min() > shown[:, -1, 2].max()  # from violet to yellow


def good_scores():
    curve = [[0.0, 0.1], [0.5, 0.2]]
    return {"miou": 0.2, "threshold": 0.5, "fp": 0.1, "fn": 0.1, "curve": curve, "images": 3,
            "per_class": {"background": 0.3, "cat": 0.1}, "absent_classes": ["dog"]}  # fmt: skip


def test_scores_are_read_from_one_stage_or_several(tmp_path):
    path = tmp_path / "s.json"
    for found in ({**good_scores(), "stage": "final"}, {"stages": {"final": good_scores()}}):
        path.write_text(json.dumps(found))
        (score,) = parse_scores(read_scores(path), ("cat", "dog")).values()
        assert (score.miou, score.threshold, score.at_the_end) == (0.2, 0.5, True)
    for text in ("", "[]", "{}", '{"stages": 3}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(WsssError, match="Expected scores in"):
            read_scores(path)
    path.write_text("{}")
    with pytest.raises(WsssError, match=r"s.json: it has no 'stage'."):
        read_scores(path)
    with pytest.raises(WsssError, match="Expected scores in"):
        read_scores(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [("miou", float("nan")), ("miou", "<b>"), ("fp", None), ("curve", []), ("curve", 3),
     ("curve", [[0.5, 0.1], [0.0, 0.1]]), ("per_class", {"yak": 0.5}), ("per_class", None),
     ("images", "many"), ("absent_classes", [])],
)  # fmt: skip
def test_what_is_no_score_is_refused(key, value):
    with pytest.raises(WsssError, match="Expected"):
        parse_scores({"final": {**good_scores(), key: value}}, ("cat", "dog"))


def test_ticks_are_round_and_span_the_range():
    rng = np.random.RandomState(0)
    for _ in range(300):
        low, span = rng.uniform(-5, 5), 10 ** rng.uniform(-3, 5)
        found = ticks(low, low + span)
        steps = np.diff(found)
        assert found[0] <= low + 1e-6 * span and found[-1] >= low + span - 1e-6 * span
        assert 3 <= len(found) <= 11
        digits = f"{steps[0]:.6e}"[0]
        assert digits in "125" and np.allclose(steps, steps[0])
    assert ticks(0, 0) == [0, 0.2]
    assert ticks(0, 1e-13) == [0, 0.2]
    assert ticks(0.5, 0.5 + 1e-13)[0] < ticks(0.5, 0.5 + 1e-13)[-1]


def test_charts_escape_their_words_and_stay_within_their_frame():
    words = "<script>\"'&"
    chart = line_chart(words, words, words, words, [Series(words, [(3, 0.0)], words, (3, 0.0))])
    macro = environment().get_template("parts.html").module.chart
    drawn = str(macro(chart, "c"))
    assert words not in drawn and "<script" not in drawn
    assert drawn.count("&lt;script&gt;") == 9
    flat = line_chart("t", "d", "x", "y", [Series("s", [(0, 0.0), (1, 0.0)])], whole=True)
    assert [text for _, text in flat.x_ticks] == ["0", "1"]


def test_training_curves_average_many_steps(tmp_path):
    rows = [{"step": n + 1, "epoch": 1, "loss": float(n % 4)} for n in range(960)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (loss,) = training_charts(tmp_path)
    assert len(loss.lines[0].path.split()) == 240
    assert len({point.split(",")[1] for point in loss.lines[0].path.split()}) == 1
    assert "960 steps" in loss.description


def test_training_curves_leave_out_what_no_chart_can_show(tmp_path):
    rows = [{"step": 1, "loss": value} for value in (-0.5, 10**400, float("nan"), "x", None, 1e300)]
    rows += [{"step": step, "loss": 9.0} for step in ("x", None, [1], True, 1.5)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (loss,) = training_charts(tmp_path)
    assert "1 steps" in loss.description and "-0.500" in loss.description


def test_pages_name_files_whose_names_are_not_utf8(tmp_path):
    shown = {"title": "t\udcff", "tables": [], "kinds": {}, "told": {}, "failed": []}
    write_page(tmp_path / "p.html", "paper.html", **shown)
    assert "t\\udcff" in (tmp_path / "p.html").read_text()
