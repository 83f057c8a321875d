"""Tuning of launch settings: the search, the kernels it covers, what it keeps. No times."""

import json

import pytest
import torch

from wsssfast.bench import operations, tune
from wsssfast.bench.options import BenchOptions
from wsssfast.bench.search import climb, merged, neighbours
from wsssfast.bench.shapes import shape_of
from wsssfast.errors import WsssError
from wsssfast.kernels import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on CPU in Triton's interpreter


def test_tuning_refuses_a_cpu():
    with pytest.raises(WsssError, match="CUDA device with Triton to tune") as error:
        tune.tune(BenchOptions(device="cpu"))
    assert "\n" not in str(error.value)


def test_climbing_changes_one_setting_at_a_time_while_it_gains():
    start = {"ROWS": 64, "num_warps": 4, "num_stages": 3}

    def measure(settings):
        if settings["ROWS"] > 128:
            return None  # out of shared memory
        return 1 + abs(settings["ROWS"] - 128) / 64 + abs(settings["num_warps"] - 8) / 8

    best, time, tried, failed = climb(start, measure)
    assert best == {"ROWS": 128, "num_warps": 8, "num_stages": 3}
    assert time == 1.0 and failed >= 1 and tried > failed
    assert climb(start, lambda settings: 1.0)[0] == start
    nearly = climb(start, lambda settings: 1.0 if settings == start else 0.985)
    assert nearly[0] == start  # less than 2 % is noise
    with pytest.raises(RuntimeError, match="do not run"):
        climb(start, lambda settings: None)
    assert list(neighbours({"ROWS": 16}, "ROWS")) == [{"ROWS": 32}]
    assert list(neighbours({"num_stages": 1}, "num_stages")) == [{"num_stages": 2}]


TINY = BenchOptions(
    arch="deit_tiny_patch16_224", classes=3, sizes=((32, 32),), batches=(1,),
    precisions=("fp32",), device=DEVICE,
)  # fmt: skip


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Tuning results of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    launch.tuned.cache_clear()
    yield
    launch.tuned.cache_clear()


def noted(kernel):
    """Input, patches, width and settings of a launch as tuning makes it."""
    (spec,) = (spec for name, spec in tune.launches_of(TINY) if name == kernel)
    with tune._noting(kernel) as found, torch.no_grad():
        inputs = operations.OPERATIONS[spec.what].inputs(shape_of(spec))
        tune._CALLS[kernel].run(shape_of(spec), *inputs)
    return found[0]


@pytest.mark.parametrize("kernel", sorted(launch.shipped()))
def test_every_kernel_with_settings_can_be_tuned(kernel):
    like, patches, width, settings = noted(kernel)
    assert like.dtype == torch.float32 and patches >= 4
    assert {"num_warps", "num_stages", "ROWS"} <= set(settings)
    assert not {"arch", "bits", "up_to", "width", "enable_fp_fusion"} & set(settings)
    row = tune.Tuned(kernel, patches, 32, width, 1.0, 0.5, settings, 3, 1).row(90)
    assert launch.fits(row, 90, 32, patches, width)
    assert not launch.fits(row, 90, 32, patches + 1, width)
    assert not launch.fits(row, 90, 16, patches, width)
    assert not launch.fits(row, 80, 32, patches, width)


@pytest.mark.parametrize("kernel", sorted(launch.shipped()))
def test_what_was_found_is_read_back(kernel, own_cache):
    limits = ("arch", "bits", "up_to", "width")
    chosen = {key: 4 for key in launch.shipped()[kernel][0] if key not in limits}
    row = tune.Tuned(kernel, 196, 32, 64, 1.0, 0.5, chosen, 3, 1).row(90)
    launch.remember("a GPU", kernel, [row])
    assert launch.tuned("a GPU", kernel) == [row]


@pytest.mark.parametrize(
    "content", ["", "[" * 100000, "[]", '{"a GPU": 3}', '{"a GPU": {"mean": [3]}}',
                '{"a GPU": {"mean": [{"arch": 90}]}}', '{"a GPU": {"mean": [{"ROWS": "x"}]}}'],
)  # fmt: skip
def test_a_broken_file_of_results_is_as_none_and_made_anew(content, own_cache):
    launch.cache_file().parent.mkdir()
    launch.cache_file().write_text(content)
    assert launch.tuned("a GPU", "mean") == []
    whole = {**launch.shipped()["mean"][0], "arch": [90]}
    launch.remember("a GPU", "mean", [whole])
    assert launch.tuned("a GPU", "mean") == [whole]
    launch.remember("a GPU", "mean", [{key: whole[key] for key in whole if key != "CLASSES"}])
    assert launch.tuned("a GPU", "mean") == []  # a version of other settings left it


def test_tuning_keeps_what_gains_and_says_so(monkeypatch, own_cache):
    """On a pretended GPU whose time is the number of rows; in the interpreter."""
    import triton.testing

    def pretended(run, **options):
        run()
        (row,) = (launch.tuned("a GPU", kernel) for kernel in tune._CALLS
                  if launch.tuned("a GPU", kernel))  # fmt: skip
        if row[0]["num_stages"] > 1:
            raise RuntimeError("out of shared memory")
        return float(row[0]["ROWS"])

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(tune, "require_kernels", lambda device: None)
    monkeypatch.setattr(triton.testing, "do_bench", pretended)
    only = {"mean": launch.shipped()["mean"]}
    monkeypatch.setattr(launch, "shipped", lambda: only)
    done = []
    (found,) = tune.tune(TINY, done.append)
    assert done == [1] and found.kernel == "mean"
    assert (found.before_ms, found.after_ms, found.settings["ROWS"]) == (32.0, 16.0, 16)
    assert found.tried > 3 and found.failed >= 1
    rows = launch.tuned("a GPU", "mean")
    assert found.kept is (rows == [found.row(90)])
    assert json.loads(json.dumps(found.to_json()))["settings"] == found.settings


def test_new_rows_replace_those_of_their_size_only():
    known = [{"arch": [90], "bits": 16, "up_to": n, "ROWS": 16} for n in (196, 784)]
    new = [{"arch": [90], "bits": 16, "up_to": n, "ROWS": 32} for n in (2304, 196)]
    found = merged(known, new)
    assert [(row["up_to"], row["ROWS"]) for row in found] == [(196, 32), (784, 16), (2304, 32)]
    assert merged(found, []) == found
