"""`price`: every stage of a tiny pipeline is measured; what is no network is refused at once."""

import json

from wsssfast.bench.pipeline import STAGES

TINY = [
    "--arch", "deit_tiny_patch16_224", "--trunk", "resnet18", "--size", "64x72", "--classes", 3,
    "--images", 100, "--test-images", 10, "--seconds", 0.01, "--device", "cpu",
]  # fmt: skip


def test_stages_that_are_measured(wsssfast):
    chosen = ["export-labels crf", "export-labels affinity", "predict"]
    code, text, err = wsssfast("price", *TINY, "--stages", ",".join(chosen), "--json", "-")
    assert code == 0, err
    assert err.splitlines() == [f"price: {s} ({n} of 3) …" for n, s in enumerate(chosen, 1)]
    found = json.loads(text)["stages"]
    assert [one["stage"] for one in found] == chosen
    for one in found:
        passes = 10 if one["stage"] == "predict" else 100
        assert one["passes"] == passes and one["error"] == ""
        assert one["images_per_second"] > 0 and one["memory"] > 1e8
        assert abs(one["hours"] - passes / one["images_per_second"] / 3600) < 1e-9
    assert found[0]["macs"] == found[0]["parameters"] == 0
    assert found[2]["parameters"] > 11e6 and found[2]["macs"] > 1e8


def test_mistakes_are_told_before_anything_is_measured(wsssfast):
    code, _, err = wsssfast("price", *TINY, "--stages", "train,sleep")
    assert code == 2 and all(stage in err for stage in STAGES)
    code, _, err = wsssfast("price", *TINY, "--trunk", "nobody", "--stages", "predict")
    assert code == 2 and "a convolutional network of timm" in err
    code, _, err = wsssfast("price", *TINY, "--arch", "nobody", "--stages", "train")
    assert code == 2 and "timm model" in err
