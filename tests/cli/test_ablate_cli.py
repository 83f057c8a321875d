"""`ablate` on the command line."""

import json

import pytest
from support import folder_dataset, tiny_model

from wsssfast.models.checkpoint import save_model


@pytest.fixture
def words(tmp_path):
    root = folder_dataset(tmp_path / "d")
    save_model(tiny_model(), tmp_path / "m.safetensors")
    return ["ablate", "--dataset", "folder", "--data-root", root, "--checkpoint",
            tmp_path / "m.safetensors", "--out", tmp_path / "scores"]  # fmt: skip


def test_scores_tables_and_page(wsssfast, words, tmp_path):
    more = ["--ratios", "0.2", "--alphas", "0,1.2", "--c2p-ranges", 2, "--scale-sets", "1;1,0.5",
            "--json", tmp_path / "a.json", "--report", tmp_path / "pages" / "a.html"]  # fmt: skip
    code, text, err = wsssfast(*words, *more)
    assert code == 0, err
    assert "original+c2p+p2p" in text and "tuned on these masks" in text
    found = json.loads((tmp_path / "a.json").read_text())
    assert {row["c2p_layers"] for row in found["settings"]} == {None, 2, 3}
    assert [1.0, 0.5] in [row["scales"] for row in found["settings"]]
    assert all(len(row["curve"]) == 60 for row in found["settings"])
    assert "<polyline" in (tmp_path / "pages" / "a.html").read_text()
    code, again, err = wsssfast(*words, *more)
    assert (code, again) == (0, text)
    code, text, err = wsssfast("verify", tmp_path / "scores")
    assert code == 0, err
    code, text, err = wsssfast("inspect", tmp_path / "scores", "--json", "-")
    assert (code, json.loads(text)["kind"]) == (0, "scores")
    code, text, err = wsssfast(*words, "--alphas", "")
    assert code == 2 and "settings" in err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--ratios", "2"], "ratio in"),
        (["--alphas", "-1"], "alpha of 0 or more"),
        (["--c2p-ranges", "1.5"], "whole numbers of layers"),
        (["--p2p-ranges", "0"], "whole numbers of layers"),
        (["--stages", "last"], "Expected --stages out of"),
        (["--rankings", ""], "Expected --rankings out of"),
        (["--scale-sets", "1;99"], "scales between"),
        (["--scale-sets", "a"], "numbers separated by commas"),
        (["--report", "/dev/null/a.html"], "no writable folder"),
    ],
)
def test_mistakes_are_told_before_the_run(wsssfast, words, tmp_path, more, told):
    code, _, err = wsssfast(*words, *more)
    assert code == 2 and told in err
    assert not (tmp_path / "scores").exists()


def test_the_unmodulated_model_has_fewer_stages(wsssfast, words, tmp_path):
    save_model(tiny_model(patch_head=False), tmp_path / "m.safetensors")
    code, text, _ = wsssfast(*words, "--alphas", "", "--ratios", "", "--c2p-ranges", "")
    assert code == 0 and "original+p2p" not in text and "original+c2p" in text


def test_classifiers_side_by_side(wsssfast, words, tmp_path):
    runs = []
    for seed in range(2):
        save_model(tiny_model(seed), tmp_path / "m.safetensors")
        runs += ["--ablation", tmp_path / f"{seed}.json"]
        code, _, err = wsssfast(*words, "--overwrite", "--json", runs[-1])
        assert code == 0, err
    page, summary = tmp_path / "both.html", tmp_path / "both.json"
    code, text, err = wsssfast("report", *runs, "--out", page, "--json", summary)
    assert code == 0 and "2 classifiers" in text and "gain" in text, err
    assert "over 2 classifiers" in page.read_text()
    rows = json.loads(summary.read_text())["settings"]
    assert all(row["spread"] is not None for row in rows)
    code, _, err = wsssfast("report", *runs, "--paper")
    assert code == 2 and "without --ablation" in err
    code, _, err = wsssfast("report", *runs[:2], *runs[:2])
    assert code == 2 and "twice" in err
    code, _, err = wsssfast("report", "--ablation", page)
    assert code == 2 and "something else" in err
