"""Several processes and one folder of shards: nobody does another's work, nobody's work is lost."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import folder_dataset, needs_shared, tiny_model

from wsssfast.cam_options import CamOptions
from wsssfast.cli.options import pick_device
from wsssfast.data import open_dataset
from wsssfast.errors import WsssError
from wsssfast.export import export_cams
from wsssfast.models.checkpoint import save_model
from wsssfast.shards import open_shards, verify_shards
from wsssfast.shards.lock import folder_lock
from wsssfast.shards.run import Filling
from wsssfast.training.workers import own_device

HOLD = """
import sys, time
from pathlib import Path
from wsssfast.shards.lock import folder_lock
with folder_lock(Path(sys.argv[1]), sys.argv[2]) as lock:
    if len(sys.argv) > 3:
        assert lock.claim(int(sys.argv[3]))
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """Start processes that hold a folder, and sometimes one of its shards."""
    started = []

    def start(*arguments):
        words = [sys.executable, "-c", HOLD, *map(str, arguments)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def data(tmp_path):
    return open_dataset("folder", folder_dataset(tmp_path / "data"))


def shards_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("cams-*")}


def export(data, out, worker=(0, 1)):
    return export_cams(
        tiny_model(), data, out, CamOptions(), shard_size=1, filling=Filling(worker=worker)
    )


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path, data, hold):
    out = tmp_path / "out"
    out.mkdir()
    first = hold(out, "")
    with pytest.raises(WsssError, match="only run that writes"):
        export(data, out)
    with pytest.raises(WsssError, match="only run that writes"):
        export(data, out, (0, 2))
    assert not shards_of(out)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert export(data, out).images == 4


def test_a_run_alone_is_refused_beside_workers(tmp_path, data, hold):
    hold(tmp_path, "purpose")
    with pytest.raises(WsssError, match="only run that writes"), folder_lock(tmp_path):
        pass


def test_workers_of_another_configuration_are_refused(tmp_path, hold):
    worker = hold(tmp_path, "this")
    with pytest.raises(WsssError, match="one configuration"), folder_lock(tmp_path, "that"):
        pass
    with folder_lock(tmp_path, "this"):
        pass
    worker.kill()
    worker.wait()
    with folder_lock(tmp_path, "that"):  # the first of new workers says what they are there for
        pass


def test_workers_do_what_no_other_has_begun(tmp_path, data, hold):
    whole, out = tmp_path / "whole", tmp_path / "out"
    export(data, whole)
    out.mkdir()
    purpose = _purpose(data, tmp_path / "probe")
    slow = hold(out, purpose, 2)
    done = export(data, out, (0, 2))
    assert (done.written_shards, done.others_shards) == (3, 1)  # 2 is held
    assert [name for name in shards_of(whole) if name not in shards_of(out)] == [
        "cams-00002-of-00004.h5", "cams-00002-of-00004.json"
    ]  # fmt: skip
    slow.kill()
    slow.wait()
    last = export(data, out, (1, 2))
    assert (last.written_shards, last.skipped_shards, last.images) == (1, 3, 4)
    assert shards_of(out) == shards_of(whole)
    assert not verify_shards(out).problems


def _purpose(data, folder):
    """What workers of `export` write into the lock file."""
    export(data, folder, (0, 2))
    return (folder / ".wsssfast.lock").read_text()


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": False}])
def test_workers_may_not_discard_one_anothers_shards(tmp_path, data, options):
    with pytest.raises(WsssError, match="several workers"):
        export_cams(
            tiny_model(),
            data,
            tmp_path / "out",
            CamOptions(),
            filling=Filling(worker=(0, 2), **options),
        )


def test_two_processes_of_which_one_is_killed(tmp_path):
    """By the command line: the survivor, or the next run, does the rest; bytes as of one run."""
    root = folder_dataset(tmp_path / "data")
    save_model(tiny_model(), tmp_path / "model.safetensors")

    def start(out, *more):
        words = [sys.executable, "-m", "wsssfast", "export-cams", "--dataset", "folder",
                 "--data-root", root, "--checkpoint", tmp_path / "model.safetensors", "--out", out,
                 "--shard-size", "1", *more]  # fmt: skip
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    whole = start(tmp_path / "whole")
    assert whole.wait(120) == 0, whole.stderr.read()
    pair = [start(tmp_path / "out", "--worker", f"{n}/2") for n in range(2)]
    deadline = time.monotonic() + 60
    while not shards_of(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.01)
    pair[1].kill()
    assert pair[0].wait(120) == 0, pair[0].stderr.read()
    last = start(tmp_path / "out", "--worker", "0/2")
    assert last.wait(120) == 0
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "whole")
    for process in (whole, *pair, last):
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    "what", ["synthetic", pytest.param("real", marks=[pytest.mark.slow, needs_shared])]
)
def test_any_number_of_workers_and_any_batch_size_make_the_same_shards(tmp_path, what):
    """Equal batches give equal bits, whoever makes them; others 1e-5 of the range, and labels.

    But for ties: two patches that float32 cannot tell apart may change places among the related
    ones, which moves a map by up to 1e-4 (seen: one map in 35, by 8e-5).
    """
    script = Path(__file__).parents[1] / "helpers" / "together.py"
    ended = subprocess.run([sys.executable, script, tmp_path, what], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(list(tmp_path.iterdir())) == 9
    wanted = open_shards(tmp_path / "1-1")
    for batch_size in ("1", "4", "auto"):
        one, two, three = (tmp_path / f"{batch_size}-{workers}" for workers in (1, 2, 3))
        assert shards_of(one) == shards_of(two) == shards_of(three)
        assert not verify_shards(one).problems
        found = open_shards(one)
        assert found.ids == wanted.ids
        differ = pixels = ties = 0
        for image_id in wanted:
            labels, maps = found.cam(image_id)
            assert labels.tolist() == wanted.labels(image_id).tolist()
            off = np.abs(maps - wanted.cam(image_id)[1]).max(initial=0)
            ties += off > 1e-5 + 2 * 1.6e-5  # two roundings, each to half a step of the store
            assert off <= 2e-4
            masks = [shards.mask(image_id, 0.4) for shards in (found, wanted)]
            differ += (masks[0] != masks[1]).sum()
            pixels += masks[0].size
        assert differ <= 1e-4 * pixels and ties <= 0.1 * len(wanted)


def test_a_full_disk_loses_nothing_that_is_done(tmp_path, data):
    """A file system of 48 KB, full after some of the shards."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(out)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        with pytest.raises(WsssError, match=r"Expected room and the right") as caught:
            export(data, out)
        assert "of this run are complete" in caught.value.remedy
        export(data, whole)
        done = shards_of(out)
        assert 0 < len(done) < len(shards_of(whole))
        assert all(content == shards_of(whole)[name] for name, content in done.items())
        assert not list(out.glob(".*.partial"))
        subprocess.run([*mount[:4], "remount,size=1m", *mount[5:]], check=True)
        assert export(data, out).skipped_shards > 0
        assert shards_of(out) == shards_of(whole)
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_torchrun_says_which_worker_this_is(tmp_path, data, monkeypatch):
    from click.testing import CliRunner

    from wsssfast.cli.main import main

    save_model(tiny_model(), tmp_path / "model.safetensors")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    words = ["export-cams", "--dataset", "folder", "--data-root", f"{tmp_path}/data"]
    words += ["--out", f"{tmp_path}/out", "--checkpoint", f"{tmp_path}/model.safetensors"]
    assert CliRunner().invoke(main, [*words, "--device", "cpu"]).exit_code == 0
    assert (tmp_path / "out" / ".wsssfast.lock").read_text()  # shared, so told for what
    wrong = CliRunner().invoke(main, [*words, "--worker", "2/2"])
    assert isinstance(wrong.exception, WsssError) and "0 <= I < N" in str(wrong.exception)


def test_sigterm_ends_as_an_interruption(tmp_path):
    code = (
        "import os, signal, sys, wsssfast.cli.main as m\n"
        "m.main = lambda **_: os.kill(os.getpid(), signal.SIGTERM) or __import__('time').sleep(9)\n"
        "m.run()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 4 and "Interrupted" in ended.stderr


@pytest.mark.parametrize(
    ("kind", "workers"), [("cams", 1), ("cams", 2), ("labels", 2), ("walk", 2), ("masks", 2)]
)
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments_nothing_is_lost_or_done_twice(tmp_path, kills, kind, workers):
    script = Path(__file__).parents[1] / "helpers" / "killed.py"
    words = [sys.executable, script, tmp_path, str(kills), str(workers), kind]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"{kills} killed")


def test_each_worker_of_torchrun_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    current = []
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    assert own_device(pick_device("auto")) == "cuda" and current == []
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert own_device(pick_device("auto")) == "cuda:1" and current == [1]
    assert own_device(pick_device("cpu")) == "cpu"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(WsssError, match="a GPU for each worker, found 1"):
        own_device("cuda")
