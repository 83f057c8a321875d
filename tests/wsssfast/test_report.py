"""The report: one file, whole, safe, and what it shows is what was computed."""

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from support import folder_dataset, random_image, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.data import open_dataset
from wsssfast.data.dataset import Dataset, Item
from wsssfast.errors import BadFile, WsssError
from wsssfast.evaluate import evaluate_cams, evaluate_labels
from wsssfast.export import export_cams
from wsssfast.kernels import STAGES
from wsssfast.labels.options import LabelOptions, options_of
from wsssfast.labels.run import export_labels
from wsssfast.report import write_report
from wsssfast.report.scores import PUBLISHED
from wsssfast.shards import CamShards, LabelRecord, LabelShards, write_label_shard

DATE = "2026-01-02"
VOID = {"meta", "img", "wbr", "link", "br", "hr", "input", "source"}


class Page(HTMLParser):
    """Reads a page, refusing tags that do not balance."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder data set, a model, and its CAMs of every stage."""
    root = tmp_path_factory.mktemp("report")
    dataset = open_dataset("folder", folder_dataset(root / "data"), None, None)
    model = tiny_model()
    export_cams(model, dataset, root / "cams", CamOptions(stages=STAGES))
    lines = [
        *({"step": n, "epoch": 1 + n // 300, "loss": 1 / n, "rate": 0.1} for n in range(1, 600)),
        {"step": 300, "epoch": 1, "scores": {"mAP": 0.25, "mAP_patch": 0.5, "AP": {"cat": 0.1}}},
        {"step": 600, "epoch": 2, "scores": {"mAP": 0.75, "mAP_patch": 0.5}},
        {"step": "<b>", "loss": 3.0}, {"step": 7, "loss": float("nan")}, {"step": 8, "scores": 3},
    ]  # fmt: skip
    (root / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root, dataset, model


@pytest.fixture(scope="module")
def whole(made):
    """The report with all that there is: its text and its parsed page."""
    root, dataset, model = made
    summary = write_report(
        root / "out" / "report.html", CamShards(root / "cams"), dataset, model=model,
        training=root, date=DATE,
    )  # fmt: skip
    text = summary.path.read_text(encoding="utf-8")
    assert (summary.bytes, summary.failed) == (len(text.encode()), {})
    assert sorted(summary.images) == ["im0", "im1", "im2", "im3"]
    return text, Page(text)


def pictures(page):
    """alt -> picture, decoded, of the size that the page gives it."""
    found = {}
    for image in page.all("img"):
        kind, data = re.fullmatch(r"data:image/(png|webp);base64,(.+)", image["src"]).groups()
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert picture.format.lower() == kind
        assert picture.size == (int(image["width"]), int(image["height"]))
        found[image["alt"]] = picture
    return found


def one(found, words):
    """The picture whose alt text has all the words."""
    (picture,) = [p for alt, p in found.items() if all(word in alt for word in words)]
    return picture


def test_the_page_needs_nothing_else(whole):
    text, page = whole
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert not {"script", "link", "iframe", "object", "base", "form"} & {t for t, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("src", "data:").startswith("data:")
        assert "url(" not in attributes.get("style", "")
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = {a["href"][1:] for a in page.all("a")}
    used |= {i for _, a in page.tags for i in a.get("aria-labelledby", "").split()}
    assert used <= set(ids)


def test_the_tables_hold_the_scores_and_what_was_published(made, whole):
    root, dataset, _ = made
    scores, _ = evaluate_cams(CamShards(root / "cams"), dataset, STAGES)
    text, page = whole
    for stage, score in scores.items():
        row = re.search(
            rf'<th scope="row">{re.escape(stage)}</th>(.+?)</tr>', text, re.DOTALL
        ).group(1)
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
        assert cells[0] == f"{100 * score['miou']:.2f}"
        assert cells[1].startswith(f"{score['threshold']:.2f}")
        assert ("end of the sweep" in cells[1]) == (score["threshold"] in (0, 0.59))
        assert cells[2:4] == [f"{100 * score[key]:.2f}" for key in ("fp", "fn")]
        assert cells[4] == str(PUBLISHED.get(stage, "not given"))
    for threshold in range(60):
        assert f'<tr><th scope="row">{threshold / 100:.2f}</th>' in text
    baseline, final = (scores[stage]["per_class"]["dog"] for stage in ("original+c2p+p2p", "final"))
    row = re.search(r'<th scope="row">dog</th>(.+?)</tr>', text, re.DOTALL).group(1)
    difference = f"{100 * (final - baseline):+.2f}".replace("-", "\u2212")
    assert [f"{100 * x:.2f}" in row for x in (baseline, final)] == [True, True]
    assert difference in row
    for words in (
        "tuned on the very masks", "not comparable", DATE, "ratio", "gather", "3: cat, dog, cow",
        "deit_tiny_patch16_224", "4 with CAMs and 4 scored",
    ):  # fmt: skip
        assert words in " ".join(page.text.split()), words


def test_the_curves_are_drawn_with_title_and_text(whole):
    text, page = whole
    charts = [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(charts) == 3  # sweep, loss, mAP
    assert len(page.all("polyline")) == 6 + 1 + 2
    points = [len(a["points"].split()) for a in page.all("polyline")]
    assert points[:6] == [60] * 6
    assert points[6] <= 240 and points[7:] == [2, 2]
    for line in page.all("polyline"):
        xy = np.array([pair.split(",") for pair in line["points"].split()], float)
        assert (np.diff(xy[:, 0]) > 0).all()
        assert (xy >= (40, 30)).all() and (xy <= (470, 272)).all()
    assert "best 75.0 % after epoch 2" in text
    assert "each point the mean of 3" in text


def test_pictures_are_those_of_shards_and_masks(made, whole):
    root, dataset, _ = made
    shards, found = CamShards(root / "cams"), pictures(whole[1])
    final = evaluate_cams(shards, dataset, ["final"])[0]["final"]
    classes = 0
    for item in dataset:
        size = dataset.image_size(item)
        classes += len(item.labels)
        assert one(found, ["image ", item.id]).size == size
        pseudo = one(found, ["pseudo-label", item.id])
        assert (np.asarray(pseudo) == shards.mask(item.id, final["threshold"], "final")).all()
        truth = one(found, ["ground truth", item.id])
        assert (np.asarray(truth) == dataset.load_mask(item)).all()
        assert truth.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
        for stage in STAGES:
            for label in item.labels:
                name = f"{stage} map of {dataset.class_names[label]} over {item.id}"
                assert found[name].size == size
    assert len(whole[1].all("img")) == 4 * (3 + 4) + 6 * classes


def test_equal_input_gives_an_equal_file(made, whole, tmp_path):
    root, dataset, model = made
    shards = CamShards(root / "cams")
    scores, _ = evaluate_cams(shards, dataset, STAGES)
    again = json.loads(json.dumps(scores))  # as from a file
    out = tmp_path / "r.html"
    write_report(out, shards, dataset, model=model, training=root, scores=again, date=DATE)
    assert out.read_text(encoding="utf-8") == whole[0]
    write_report(out, shards, dataset, images=0)
    assert not re.search(r"\d{4}-\d\d-\d\d", whole[0].replace(DATE, ""))
    assert re.search(r"\d{4}-\d\d-\d\d", out.read_text(encoding="utf-8"))  # today


def hostile_dataset(size=(200, 330)):
    """Names that would run, or end what they stand in, were they not escaped."""
    names = ("<script>alert(1)</script>", "\" onmouseover='alert(2)' x=\"", "{{ 7 * 7 }}&amp;")
    ids = ("'><img src=x onerror=alert(3)>", "<b>&lt;{% raw %}")
    items = tuple(sorted((Item(i, (0, 1, 2)) for i in ids), key=lambda item: item.id))
    return Dataset(
        "folder", "<i>split", names, items, lambda item: size,
        lambda item: random_image(*size), lambda item: None, "<u>labels.csv",
    )  # fmt: skip


def test_names_and_ids_are_text_wherever_they_stand(tmp_path):
    dataset = hostile_dataset()
    model = tiny_model(classes=dataset.class_names)
    export_cams(model, dataset, tmp_path / "cams", CamOptions(stages=("original", "final")))
    write_report(tmp_path / "r.html", CamShards(tmp_path / "cams"), dataset, model=model)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not {"script", "b", "i", "u"} & tags
    assert all("onerror" not in a and "onmouseover" not in a for _, a in page.tags)
    assert len(page.all("img")) == 2 * (1 + 3 * 2 + 4)
    for words in (*dataset.class_names, *(item.id for item in dataset), "<i>split", "<u>labels"):
        assert words in page.text, words
        assert "<" not in words or words not in text
    for attributes in page.all("img"):
        assert any(item.id in attributes["alt"] or "patch" in attributes["alt"] for item in dataset)
        assert max(int(attributes["width"]), int(attributes["height"])) == 320


def test_what_is_absent_is_marked(made, tmp_path):
    root, dataset, _ = made
    export_cams(tiny_model(), dataset, tmp_path / "cams", CamOptions(stages=("final",)))
    write_report(tmp_path / "one.html", CamShards(tmp_path / "cams"), dataset)
    one_stage = Page((tmp_path / "one.html").read_text(encoding="utf-8")).text
    assert one_stage.count("not measured here") == 5 + 4  # stages; classes of the baseline
    assert "no checkpoint was given" in one_stage
    assert "no log of a training run was given" in one_stage
    assert "not given to this report" in one_stage
    (tmp_path / "bare").mkdir()
    bare = folder_dataset(tmp_path / "bare" / "data")
    shutil.rmtree(bare / "masks")
    without = open_dataset("folder", bare, None, None)
    summary = write_report(tmp_path / "none.html", CamShards(root / "cams"), without, images=2)
    none = Page((tmp_path / "none.html").read_text(encoding="utf-8"))
    assert len(summary.images) == 2
    assert "Scores: not measured here, as the data set has no masks" in none.text
    assert "hand-drawn" not in none.text and "IoU" not in none.text
    assert none.text.count("not measured here") == 1 + 2 * 2
    assert not [alt for alt in pictures(none) if "ground truth" in alt or "pseudo" in alt]


def test_label_shards_are_shown_in_place_of_thresholded_maps(made, tmp_path):
    root, dataset, _ = made
    mask = np.full((32, 40), 255, np.uint8)
    mask[:9] = 2
    for name, classes in (("labels", ["cat", "dog", "cow"]), ("others", ["cat"])):
        (tmp_path / name).mkdir()
        write_label_shard(
            tmp_path / name, 0, 1,
            [LabelRecord.of("im0", (len(classes) // 2,), mask * (name == "labels"))],
            failed={}, identity={"class_names": classes}, config={}, versions={},
        )  # fmt: skip
    shards, out = CamShards(root / "cams"), tmp_path / "r.html"
    labels = LabelShards(tmp_path / "labels")
    write_report(out, shards, dataset, labels=labels, ids=["im0", "im1"])
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    (shown,) = [p for alt, p in pictures(page).items() if "pseudo-label" in alt]
    assert (np.asarray(shown) == mask).all()
    assert "ignored" in page.text
    assert (
        text.count('<p class="absent">not measured here</p>') == 1
    )  # im1 is not in the label shards
    with pytest.raises(WsssError, match="label shards of the classes"):
        write_report(out, shards, dataset, labels=LabelShards(tmp_path / "others"))


def test_a_crf_is_shown_beside_what_it_started_from(made, tmp_path):
    root, dataset, _ = made
    shards = CamShards(root / "cams")
    options = LabelOptions("final", (0.2,), refine="crf")
    export_labels(shards, tmp_path / "labels", options, dataset)
    labels, out = LabelShards(tmp_path / "labels"), tmp_path / "r.html"
    assert options_of(labels.identity) == options
    write_report(out, shards, dataset, labels=labels, ids=["im0"])
    page = Page(out.read_text(encoding="utf-8"))
    found = pictures(page)
    plain = tmp_path / "plain"
    export_labels(shards, plain, LabelOptions("final", (0.2,)))
    for told, folder in (("final before the CRF", plain), ("after the CRF", tmp_path / "labels")):
        mask = LabelShards(folder).mask("im0")
        assert np.array_equal(np.asarray(one(found, [told])), mask)
        miou = evaluate_labels(LabelShards(folder), dataset)[0]["miou"]
        assert re.search(rf"{told.removeprefix('final ')}\s+{100 * miou:.2f}", page.text)
    write_report(out, shards, dataset, labels=LabelShards(plain), ids=["im0"])
    text = Page(out.read_text(encoding="utf-8")).text
    assert "before the CRF" not in text and "Not ignored" in text


def test_images_that_cannot_be_read_are_listed_and_the_rest_shown(made, tmp_path):
    root, dataset, _ = made

    def load_image(item):
        if item.id == "im2":
            raise BadFile("truncated <at> byte 400")
        return random_image(9, 9) if item.id == "im3" else dataset.load_image(item)

    def load_mask(item):
        if item.id == "im1":
            raise BadFile("no mask")
        return dataset.load_mask(item)

    broken = replace(dataset, load_image=load_image, load_mask=load_mask)
    summary = write_report(
        tmp_path / "r.html", CamShards(root / "cams"), broken, ids=[f"im{n}" for n in range(4)]
    )
    assert summary.images == ("im0", "im1")
    assert summary.failed == {
        "im1": "mask: no mask",
        "im2": "truncated <at> byte 400",
        "im3": "9x9 pixels, while its CAM is of 64x24",
    }
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "3 inputs could not be read" in page.text
    assert "im2: truncated <at> byte 400" in page.text


def test_what_does_not_belong_together_is_refused(made, tmp_path):
    root, dataset, model = made
    shards, out = CamShards(root / "cams"), tmp_path / "r.html"
    other = tiny_model(seed=1)
    elsewhere = replace(dataset, items=dataset.items[1:])
    scores, _ = evaluate_cams(shards, dataset, ["final"])
    more = {"final": {**scores["final"], "images": 5}}
    for words, given in {
        "made the shards": {"model": other},
        "data set's 3 classes": {"model": tiny_model(classes=("a", "b"))},
        "found im7, im8": {"ids": ["im0", "im7", "im8"]},
        "log of a training run": {"training": tmp_path},
        "more images": {"scores": more},
        "unknown": {"scores": {"unknown": {}}},
    }.items():
        with pytest.raises(WsssError, match=words):
            write_report(out, shards, dataset, **{"model": model, **given})
    with pytest.raises(WsssError, match="images of this data set, found im0"):
        write_report(out, shards, elsewhere)
    with pytest.raises(WsssError, match="found a folder"):
        write_report(tmp_path, shards, dataset)
    assert list(tmp_path.iterdir()) == []


def test_a_browser_shows_it_without_errors_or_sideways_scrolling(made, whole, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here to show the page in")
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{escape(whole[0])}">'
        "</iframe>"
        for width in (1280, 390, 320)
    )
    script = (
        "onload = () => { out.textContent = [...document.querySelectorAll('iframe')].map(f => "
        "f.contentDocument.documentElement).map(e => e.scrollWidth - e.clientWidth + ' too wide, '"
        " + [...e.querySelectorAll('img')].filter(i => !i.naturalWidth).length + ' broken')"
        ".join('; ') }"
    )
    page = tmp_path / "frames.html"
    page.write_text(f'{frames}<p id="out"></p><script>{script}</script>', encoding="utf-8")
    words = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    found = re.search(r'<p id="out">(.*?)</p>', shown.stdout).group(1)
    assert found == "; ".join(["0 too wide, 0 broken"] * 3)
