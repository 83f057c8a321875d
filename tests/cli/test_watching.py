"""What a long export shows: plain lines without a terminal, and a log that machines read."""

import json

from wsssfast.cli import watching
from wsssfast.pace import Pace

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
    assert "left" not in watching.describe({**FACTS, "seconds_left": None})


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
    now[0] = 5.0
    pace.advance(15)
    assert told[1]["seconds_left"] == 5.0  # 60 to do, half of them by this one
    now[0] = 10.0
    pace.advance(15, 1)
    del told[1]
    assert (told[1]["images"], told[1]["failed"]) == (50, 1)
    assert (told[1]["images_per_second"], told[1]["seconds_left"]) == (3.0, 0.0)
    with pace.waiting("write"):
        now[0] = 12.0
    pace.advance(30)  # more than its share
    assert told[2]["seconds_left"] == 0.0 and told[2]["waiting"]["write"] == round(2 / 12, 4)
