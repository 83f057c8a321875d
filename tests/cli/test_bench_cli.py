"""`wsssfast bench`: one table, one JSON line, one line for every mistake."""

import json
import subprocess
import sys

import pytest

TINY = ("--arch", "deit_tiny_patch16_224", "--classes", "3", "--size", "32x32", "--seconds", "0.01",
        "--device", "cpu")  # fmt: skip


@pytest.fixture
def quick_peaks(monkeypatch):
    """The machine's ceilings without measuring them."""
    from wsssfast.bench import run
    from wsssfast.bench.peaks import Peaks

    monkeypatch.setattr(
        run, "measure_peaks", lambda device, names: Peaks(1e10, dict.fromkeys(names, 1e11))
    )


def test_a_table_and_then_one_json_line(wsssfast, quick_peaks, tmp_path):
    file = tmp_path / "bench.json"
    code, out, err = wsssfast("bench", *TINY, "--no-memory", "--json", file)
    assert code == 0, err
    last = json.loads(out.splitlines()[-1])
    assert last == json.loads(file.read_text())
    assert {row["what"] for row in last["rows"]} >= {"forward", "attention", "refine"}
    for row in last["rows"]:
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"] and row["runs"] >= 5
        assert row["contender"] != row["baseline"] or row["ratio"] == 1
        assert row["note"] == "" and row["peak_mb"] is None
        assert row["contender"] in out and row["size"] == "32x32"
    assert last["threads"] >= 1 and last["device"] and last["versions"]["torch"]
    assert last["options"]["what"] == ["forward", "operations"]


def test_json_alone_and_memory(wsssfast, quick_peaks):
    code, out, err = wsssfast("bench", *TINY, "--what", "forward", "--json", "-")
    assert code == 0, err
    assert err == "bench: forward 32x32, batch 1, fp32 (1 of 1) …\n"
    found = json.loads(out)["rows"]
    assert [row["contender"] for row in found][:2] == ["SDPA, no attention", "wsssfast"]
    assert all(row["peak_mb"] >= 0 for row in found)


def test_cases_over_the_limit_are_listed(wsssfast, quick_peaks):
    code, out, err = wsssfast("bench", *TINY, "--no-memory", "--limit", "1e-9", "--json", "-")
    assert code == 0, err
    assert {row["note"] for row in json.loads(out)["rows"]} == {
        "left out: over the limit of 1e-09 s"
    }


def test_a_contender_that_fails_is_told_at_the_end(wsssfast, quick_peaks, monkeypatch):
    from wsssfast.bench import peers

    def broken(*given):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(peers, "recompute_forward", broken)
    code, out, err = wsssfast("bench", *TINY, "--what", "forward", "--no-memory")
    assert (code, err.count("\n")) == (5, 2), err  # after the line that the case begins
    assert "1 did not: SDPA + recompute, top-k" in err and "no such kernel" in err
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert sum(row["runs"] > 0 for row in rows) == len(rows) - 1


def test_a_config_file_takes_lists(wsssfast, quick_peaks, tmp_path):
    config = tmp_path / "bench.toml"
    config.write_text('size = ["32x32", "16x48"]\nbatch = [1, 2]\nwhat = ["forward"]\n')
    tiny = [word for word in TINY if word not in ("--size", "32x32")]
    code, out, err = wsssfast("bench", *tiny, "--no-memory", "--config", config, "--json", "-")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert {(row["size"], row["batch"]) for row in rows} == {
        ("32x32", 1), ("32x32", 2), ("16x48", 1), ("16x48", 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--size", "224"), "Expected sizes HxW"),
        (("--size", "8x8"), "at least one patch"),
        (("--size", ""), "at least one size"),
        (("--batch", "0"), "Expected whole numbers"),
        (("--what", "training"), "out of forward, operations"),
        (("--precision", "fp8"), "out of fp32, bf16, fp16"),
        (("--arch", "no_such_vit"), "Unknown model"),
        (("--classes", "2", "--per-image", "3"), "1 to 1000 classes"),
        (("--seconds", "0"), "seconds above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_line(wsssfast, words, text):
    code, out, err = wsssfast("bench", *TINY, *words)
    assert (code, text in err, err.count("\n"), out) == (2, True, 1, ""), err


def test_tuning_needs_a_gpu(wsssfast):
    words = [word for word in TINY if word not in ("--seconds", "0.01")]
    code, out, err = wsssfast("bench", *words, "--tune")
    assert (code, err.count("\n"), out) == (2, 1, "")
    assert "Expected a CUDA device with Triton" in err


def test_help_imports_no_torch():
    code = (
        "import sys; sys.argv = ['wsssfast', 'bench', '-h']\n"
        "from wsssfast.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
