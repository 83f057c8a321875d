"""Every fault against every long command: what is said, what is kept, and that nothing is lost.

Each cell runs a command in a process of its own, lets the fault happen after something is
finished, and runs the same command again; that must end with the shards or the weights of a run
that nothing happened to, byte by byte. `docs/faults.md` shows the same table.
"""

import os
import re
import signal
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import faults
import pytest
from jobs import COMMANDS, Job, Running, make_inputs

from wsssfast.errors import DONE, INTERRUPTED, SOME_UNREADABLE, USER_ERROR, WORKER_FAILED

TRAINING = ("train", "train-affinity", "train-seg")
EXPORTS = ("export-cams", "export-labels")
NO_ROOM = r"Expected room and the right to write in .*(run the same command again)"
INPUTS = {"train-affinity": "cams", "export-labels": "cams", "train-seg": "labels"}
KINDS = {  # fault -> kind of command -> exit code and what is said
    "killed": dict.fromkeys(COMMANDS, (-signal.SIGKILL, "^$")),
    "terminated": dict.fromkeys(COMMANDS, (INTERRUPTED, "un the same command again")),
    "disk_full": dict.fromkeys(COMMANDS, (USER_ERROR, NO_ROOM)),
    "permission_lost": dict.fromkeys(COMMANDS, (USER_ERROR, NO_ROOM)),
    "clock_jumps": dict.fromkeys(COMMANDS, (DONE, "^$")),
    "out_of_memory": {
        **dict.fromkeys(TRAINING, (WORKER_FAILED, "with a larger --accumulate")),
        **dict.fromkeys(EXPORTS, (SOME_UNREADABLE, r"unreadable: im\d: not enough memory for")),
    },
    "helpers_killed": {
        **dict.fromkeys(TRAINING, (WORKER_FAILED, "reduce --loader-workers")),
        "export-labels": (WORKER_FAILED, "give fewer --crf-workers"),
    },
}
CELLS = [(fault, command) for fault, told in KINDS.items() for command in told]
ROWS = {  # of docs/faults.md -> exit codes by command
    "SIGKILL, power cut": KINDS["killed"],
    "SIGTERM, Ctrl-C": KINDS["terminated"],
    "disk full": KINDS["disk_full"],
    "permission lost": KINDS["permission_lost"],
    "clock jumps back and forth": KINDS["clock_jumps"],
    "out of memory": KINDS["out_of_memory"],
    "helper process killed": KINDS["helpers_killed"],
    "second run on one folder": dict.fromkeys(COMMANDS, (USER_ERROR, "")),
    "image with a read error": dict.fromkeys(COMMANDS, (SOME_UNREADABLE, "")),
    "input shard corrupted": dict.fromkeys(INPUTS, (USER_ERROR, "")),
    "finished work corrupted": {
        **dict.fromkeys(TRAINING, (USER_ERROR, "")), **dict.fromkeys(EXPORTS, (DONE, ""))
    },
}  # fmt: skip
AT_ONCE = ("clock_jumps", "out_of_memory")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def whole(root):
    """What a run leaves that nothing happens to, by command."""
    found = {}

    def results(command):
        if command not in found:
            job = Job(command, root, root / f"whole-{command}")
            code, told = Running(job).end()
            assert code == DONE, told
            found[command] = job.results()
            assert found[command]
        return found[command]

    return results


def assert_mended(job, whole, code=DONE):
    """The same command again, with nothing in its way."""
    again = Running(Job(job.command, job.root, job.out)).end()
    assert again == (code, "") or (code and again[0] == code), again
    assert job.results() == whole(job.command)
    assert not list(job.out.rglob("*.partial"))


def test_the_page_says_what_is_tested():
    page = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
    table = page.read_text().partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0][1:6] == list(COMMANDS)
    told = {row[0]: row[1:] for row in rows[2:]}
    assert list(told) == list(ROWS)
    for fault, codes in ROWS.items():
        wanted = [str(int(codes[c][0])) if c in codes else "none" for c in COMMANDS]
        assert told[fault][:5] == wanted, fault


@pytest.mark.parametrize(("fault", "command"), CELLS)
def test_a_fault_in_the_middle(root, whole, fault, command):
    expected, said = KINDS[fault][command]
    wanted = whole(command)
    helpers = (2 if command == "export-labels" else 1) if fault == "helpers_killed" else 0
    job = Job(command, root, root / f"{command}-{fault}", helpers)  # where permission_lost reaches
    act = getattr(faults, fault)
    code, told = Running(job, act if fault in AT_ONCE else partial(faults.at_a_file, act)).end()
    assert code == expected, told
    assert re.search(said, told), told
    assert "Traceback" not in told
    done = {name: content for name, content in job.results().items() if "-of-" in name}
    sidecars = [name for name in done if name.endswith(".json")]
    assert command in TRAINING or sidecars  # something was finished before
    if expected != SOME_UNREADABLE:
        for name in sidecars:  # a sidecar says that its shard is finished: then it is, and right
            shard = name.replace(".json", ".h5")
            assert (done[name], done[shard]) == (wanted[name], wanted[shard])
    assert_mended(job, whole)


@pytest.mark.parametrize("command", COMMANDS)
def test_two_runs_on_one_folder(root, whole, tmp_path, command):
    whole(command)
    job = Job(command, root, tmp_path / "out")
    first = Running(job, partial(faults.at_a_file, faults.stopped))
    status = Path(f"/proc/{first.process.pid}/stat")
    deadline = time.monotonic() + 120
    while status.read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        code, told = Running(job).end()
    finally:
        os.kill(first.process.pid, signal.SIGCONT)
    assert code == USER_ERROR and re.search("another at work. Wait for it", told), told
    assert first.end()[0] == DONE
    assert_mended(job, whole)


@contextmanager
def put_back(path):
    """A file that may be spoiled meanwhile."""
    content = path.read_bytes()
    try:
        yield path
    finally:
        path.unlink()
        path.write_bytes(content)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_error(root, whole, tmp_path, command):
    whole(command)
    job = Job(command, root, tmp_path / "out")
    with put_back(root / "data" / "images" / "im3.png") as image:
        faults.unreadable(image)
        code, told = Running(job).end()
    assert code == SOME_UNREADABLE, told
    assert re.search("^unreadable: im3: .*Input/output error", told, re.M), told
    if command in EXPORTS:
        assert_mended(job, whole)  # its shard is done again
    else:  # complete without that image; it stays listed
        code, told = Running(job).end()
        assert code == SOME_UNREADABLE and "unreadable: im3" in told


@pytest.mark.parametrize("command", INPUTS)
def test_a_corrupted_shard_of_the_input(root, whole, tmp_path, command):
    whole(command)
    job = Job(command, root, tmp_path / "out")
    with put_back(sorted((root / INPUTS[command]).glob("*.h5"))[0]) as shard:
        faults.flip_a_byte(shard)
        code, told = Running(job).end()
    assert code == USER_ERROR and shard.name in told and "is made anew" in told, told
    assert_mended(job, whole)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_was_finished_is_corrupted(root, whole, tmp_path, command):
    whole(command)
    job = Job(command, root, tmp_path / "out")
    Running(job, partial(faults.at_a_file, faults.killed)).end()
    if command in EXPORTS:
        faults.flip_a_byte(sorted(job.out.glob("*.h5"))[0])
        code, told = Running(job).end()
        assert code == DONE and "is damaged" in told and "made anew" in told, told
    else:
        faults.flip_a_byte(job.out / "resume.safetensors")
        code, told = Running(job).end()
        assert code == USER_ERROR and re.search("checksum.*Start anew with --overwrite", told)
        anew = Running(Job(command, root, job.out, more=("--overwrite",))).end()
        assert anew == (DONE, "")
    assert_mended(job, whole)
