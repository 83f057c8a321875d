"""What a long export shows: plain lines without a terminal, and a log that machines read."""

import json

import pytest

from wsssfast.cli import options, watching
from wsssfast.pace import Pace
from wsssfast.shards.resume import ExportSummary

FACTS = {
    "images": 40, "of": 82081, "failed": 2, "seconds": 10.0, "images_per_second": 4.0,
    "seconds_left": 20510.2, "waiting": {"decode": 0.011, "device": 0.98, "write": 0.0},
}  # fmt: skip


def test_the_line_says_rate_rest_waits_and_unreadable_files():
    assert watching.describe(FACTS) == (
        "4 images/s, 5 h 41 min left, waiting: decode 1 %, device 98 %, write 0 %, 2 unreadable"
    )
    few = {**FACTS, "seconds_left": 61.0, "failed": 0}
    assert "1 min 1 s left" in watching.describe(few) and "unreadable" not in watching.describe(few)
    assert watching.describe({**FACTS, "seconds_left": None}) == (
        "waiting: decode 1 %, device 98 %, write 0 %, 2 unreadable"
    )
    unmeasured = {**FACTS, "waiting": {"decode": 0.0, "device": 0.0, "write": 0.0}}
    assert watching.describe(unmeasured) == "4 images/s, 5 h 41 min left, 2 unreadable"


def test_without_a_terminal_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    with watching.watching("export-cams", None) as watch:
        for now[0] in (1.0, 29.0, 31.0, 40.0, 62.0):
            watch("images", FACTS)
        watch("end", FACTS)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("export-cams: 40 of 82,081 images, 4 images/s")


def test_other_commands_tell_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(options.time, "monotonic", lambda: now[0])
    with options.progress("evaluate cams", 725) as advance:
        for now[0] in (1.0, 29.0, 31.0, 40.0, 62.0):
            advance(40)
    assert capsys.readouterr().err == "evaluate cams: 120 of 725\nevaluate cams: 200 of 725\n"
    with options.progress("price", 2) as advance:
        for stage in ("train", "predict"):
            advance.begin(stage)
            now[0] += 99.0
            advance(1)
    assert capsys.readouterr().err == "price: train (1 of 2) …\nprice: predict (2 of 2) …\n"


def test_on_a_terminal_the_bar_names_the_part(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with options.progress("price [x]", 2) as advance:
        advance.begin("train")
        assert advance._bar.tasks[0].description == "price [x]: train"
        advance(2)
        assert advance._bar.finished
    found = capsys.readouterr()
    assert found.out == "" and "…" not in found.err


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((1, 0, 0), "1 shard written, 0 were done, the only one is there; 0.00 MB, 8 "
         "bytes an image."),
        ((2, 1, 0), "2 shards written, 1 was done, all 3 are there; "),
        ((0, 3, 2), "0 shards written, 3 were done, 2 were in the hands of other workers: all are "
         "there once these have ended; "),
    ],
)  # fmt: skip
def test_what_was_done_says_whether_all_is_there(counts, told):
    written, skipped, others = counts
    found = ExportSummary(1, skipped, written, others, bytes=8)
    assert options.shards_told(found).startswith(told)


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with watching.watching("export-cams", None) as watch:
        watch("begin", {})
        watch("images", FACTS)
    assert capsys.readouterr().out == ""


def test_two_runs_may_write_into_one_log(tmp_path):
    log = tmp_path / "log.jsonl"
    with watching.watching("a", str(log)) as first, watching.watching("b", str(log)) as second:
        first("begin", {"worker": "0/2"})
        second("begin", {"worker": "1/2"})
        first("images", FACTS)
        first("end", FACTS)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["begin", "begin", "end"]
    assert {"time", "host", "pid"} <= lines[0].keys() and lines[2]["images_per_second"] == 4.0


def test_a_full_disk_or_a_closed_stderr_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    with watching.watching("export-cams", "/dev/full") as watch:
        watch("begin", {})
        watch("end", FACTS)
    assert capsys.readouterr().err == (
        "export-cams: no more is written to /dev/full: [Errno 28] No space left on device.\n"
    )
    monkeypatch.setattr("sys.stderr", None)
    with watching.watching("export-cams", str(tmp_path / "log")) as watch:
        watch("end", FACTS)
    assert (tmp_path / "log").read_text().startswith('{"event": "end"')


def test_the_rest_is_shared_among_the_workers(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("wsssfast.pace.time.perf_counter", lambda: now[0])
    told = []
    pace = Pace(100, 40, 2, lambda event, facts: told.append(facts))
    pace.advance(20, before=True)
    now[0] = 40.0  # to start, and for the first
    pace.advance(1)
    assert (told[1]["images_per_second"], told[1]["seconds_left"]) == (0.025, None)
    now[0] = 44.0
    pace.advance(8)
    assert told[2]["seconds_left"] is None  # a batch may have come at once
    now[0] = 45.0
    pace.advance(1, 1)
    assert (told[3]["images"], told[3]["failed"]) == (30, 1)
    assert (told[3]["images_per_second"], told[3]["seconds_left"]) == (1.8, round(20 / 1.8, 1))
    with pace.waiting("write"):  # 60 were to do, half of them by this one
        now[0] = 50.0
    pace.advance(30)  # more than its share
    assert told[4]["seconds_left"] == 0.0 and told[4]["waiting"]["write"] == round(5 / 50, 4)


def test_a_short_run_ends_with_nothing_left():
    told = []
    pace = Pace(2, 0, 1, lambda event, facts: told.append(facts["seconds_left"]))
    pace.advance(1)
    pace.advance(1)
    pace.tell("end")
    assert told == [None, 0.0, 0.0]
