"""The published tables beside what was measured."""

import json
import re

import pytest

from wsssfast.errors import WsssError
from wsssfast.report.paper import KINDS, read_measured, tables_of, write_paper_report


def setting(stage, miou, **changes):
    usual = {"scales": [1.0], "c2p_layers": 3, "p2p_layers": 12, "propagation": "gather",
             "related_by": "attention", "ratio": 0.3, "alpha": 1.2}  # fmt: skip
    return {"stage": stage, "miou": miou, **usual, **changes}


MEASURED = {
    "ablation": {
        "dataset": "voc", "split": "train", "images": 7, "settings": [
            setting("original", 0.2, c2p_layers=None, p2p_layers=None, propagation=None,
                    related_by=None, ratio=None, alpha=None),
            setting("original+c2p+p2p", 0.3, related_by=None, ratio=None, alpha=None),
            setting("final", 0.9, related_by="tokens"), setting("final", 0.9, scales=[1.0, 0.5]),
            setting("final", 0.4), setting("final", 0.41, ratio=0.1),
            setting("final", 0.42, alpha=0.6),
        ],
    },
    "price": {
        "device": "a machine", "options": {"arch": "deit", "images": 5}, "stages": [
            {"stage": "train", "macs": 2e9, "parameters": 3e6, "hours": 4.0, "memory": 5e6},
            {"stage": "export-cams", "images_per_second": 6.0},
        ],
    },
    "seg": {"miou": 0.5, "images": 3}, "labels": {"miou": 0.45, "images": 3},
}  # fmt: skip


def rows(key, measured):
    (table,) = [table for table in tables_of(measured) if table.key == key]
    return {row.name: row.here for row in table.rows}


def test_what_was_measured_stands_beside_the_published_figures():
    assert rows("1", MEASURED)["this method"] == [2.0, 3.0, 6.0, 4.0, 5.0]
    assert rows("1", MEASURED)["LPCAM"] == []
    assert rows("2", MEASURED) == {
        "baseline (MCTformer)": [30.0, None],
        "this method": [40.0, 50.0],
    }
    assert rows("fig5", MEASURED)["10 %"] == [41.0] and rows("fig5", MEASURED)["30 %"] == [40.0]
    assert rows("3", MEASURED) | {"1.2": [40.0], "0.6": [42.0]} == rows("3", MEASURED)
    assert rows("4", MEASURED)["initial"] == [20.0] and rows("5", MEASURED)["Modulated-CAM"] == [
        None
    ]
    assert rows("6", MEASURED)["this method"] == [40.0, 45.0]
    assert rows("7", MEASURED)["this method"] == [50.0, None]
    assert rows("8", MEASURED)["this method"] == [None]


def test_without_measurements_every_row_says_so(tmp_path):
    tables = tables_of({})
    assert [table.key for table in tables] == [
        "1", "2", "fig5", "3", "4", "5", "6", "7", "8", "elsewhere",
    ]  # fmt: skip
    for table in tables:
        assert all(len(row.published) == len(table.columns) for row in table.rows), table.key
        assert all(set(row.here) <= {None} for row in table.rows)
    write_paper_report(tmp_path / "p.html", {})
    text = (tmp_path / "p.html").read_text()
    assert text.count("not measured here") == sum(len(table.rows) for table in tables)
    assert all(name in text for name in KINDS)


def test_the_page_is_the_same_again(tmp_path):
    for name in "ab":
        write_paper_report(tmp_path / name, MEASURED)
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text()
    assert "voc, split train, 7 images" in text and re.search(r">\s*63.60\s*<", text)


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"settings": [{"stage": "final"}]}', "{"])
def test_files_of_other_commands_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    for name in ("ablation", "price", "seg"):
        with pytest.raises(WsssError, match=f"figures of {name}"):
            read_measured({name: tmp_path / "x.json"})


@pytest.mark.parametrize(
    ("stage", "change"),
    [(0, {"macs": 10**400}), (0, {"hours": "x"}), (1, {"images_per_second": [1]})],
)
def test_figures_that_are_no_numbers_are_refused(tmp_path, stage, change):
    stages = [dict(found) for found in MEASURED["price"]["stages"]]
    stages[stage].update(change)
    (tmp_path / "x.json").write_text(json.dumps({**MEASURED["price"], "stages": stages}))
    with pytest.raises(WsssError, match="figures of price"):
        read_measured({"price": tmp_path / "x.json"})


def test_figures_that_do_not_say_on_what_are_refused_in_a_line(tmp_path):
    for found in ({"miou": 0.5}, {"miou": "x" * 100000, "images": 3}):
        (tmp_path / "x.json").write_text(json.dumps(found))
        with pytest.raises(WsssError, match="figures of seg") as refused:
            read_measured({"seg": tmp_path / "x.json"})
        assert len(str(refused.value)) < 2000


def test_the_command(wsssfast, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(MEASURED["ablation"]))
    words = ["report", "--paper", "--out", tmp_path / "p.html"]
    code, text, err = wsssfast(*words, "--measured", f"ablation={tmp_path / 'a.json'}")
    assert code == 0 and "p.html" in text, err
    assert ">40.00<" in re.sub(r"\s", "", (tmp_path / "p.html").read_text())
    for wrong, told in (
        (["--measured", "ablation"], "NAME=FILE"),
        (["--measured", "colour=x"], "found 'colour'"),
        (["--measured", f"price={tmp_path / 'a.json'}"], "figures of price"),
        (["--measured", "seg=none.json"], "figures of seg"),
        (["--cams", tmp_path], "--cams"),
    ):
        code, _, err = wsssfast(*words, *wrong)
        assert code == 2 and told in err
    code, _, err = wsssfast("report")
    assert code == 2 and "--cams" in err
    code, _, err = wsssfast("report", "--cams", tmp_path, "--measured", "seg=x")
    assert code == 2 and "--paper" in err
