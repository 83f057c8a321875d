"""The benchmarks: peers compute what we do, numbers are put together right. No times."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from support import tiny_model

from wsssfast import kernels
from wsssfast.bench import forward, operations, peers, report, run, timing
from wsssfast.bench.cases import Case, Contender, Work, build
from wsssfast.bench.memory import FreshProcesses
from wsssfast.bench.options import (
    BenchOptions,
    Spec,
    parse_counts,
    parse_names,
    parse_sizes,
)
from wsssfast.bench.peaks import Peaks
from wsssfast.bench.run import specs_of
from wsssfast.bench.shapes import shape_of
from wsssfast.bench.timing import Times, Turns, spread, take_turns
from wsssfast.errors import WsssError
from wsssfast.kernels import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of Triton; on CPU its interpreter
SPEC = Spec("forward", "deit_tiny_patch16_224", 4, 2, (48, 80), 2, "fp32", "cpu")


def close(found, wanted, tolerance=1e-5):
    return (found - wanted).abs().max() <= tolerance * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("layers", [(3, 12), (1, 2), (4, 1)])
@pytest.mark.parametrize("peer", [peers.stacked_forward, peers.recompute_forward])
def test_peers_keep_what_a_capture_keeps(peer, layers):
    model, images = tiny_model(), torch.randn(2, 3, 40, 56)
    found, wanted = peer(model, images, *layers), model.capture(images, *layers)
    for name in ("cam", "c2p", "p2p"):
        assert close(getattr(found, name), getattr(wanted, name)), name


def test_the_floor_gives_the_same_cam():
    model, images = tiny_model(), torch.randn(2, 3, 40, 56)
    assert close(peers.plain_forward(model, images), model.capture(images).cam)


def test_refinement_by_an_index_list_is_the_same():
    cam, c2p, p2p = torch.randn(2, 3, 50), torch.rand(2, 3, 50), torch.rand(2, 50, 50)
    count = reference.related_count(0.3, 50)
    wanted = reference.related_mean(c2p, reference.related_patches(p2p, count))
    assert close(peers.topk_gather_mean(c2p, p2p, count), wanted)
    final = kernels.refine(cam, c2p, p2p)["final"]
    assert close(peers.refine_by_topk(cam, c2p, p2p, 0.3, 1.2), final)
    assert close(peers.refine_by_reference(cam, c2p, p2p, 0.3, 1.2), final)


def test_forwards_end_in_the_same_maps():
    case = build(SPEC, sets=2)
    calls = {contender.name: contender.call for contender in case.contenders}
    assert case.patches == 15 and case.baseline in calls
    for n in range(3):
        wanted = calls["wsssfast"](n)
        assert wanted.shape == (2, 2, 15)
        assert close(calls["SDPA + recompute, top-k"](n), wanted)
        assert close(calls["attention stacked, top-k"](n), wanted)
    assert torch.equal(calls["wsssfast"](0), calls["wsssfast"](2))  # two sets in rotation
    assert not torch.equal(calls["wsssfast"](0), calls["wsssfast"](1))
    # 2 flops a multiply-add: patch embedding, 12 blocks of 192 channels, and the 3x3 head
    linear = 3 * 192**2 + 192**2 + 8 * 192**2
    flops = 15 * 192 * 3 * 256 + 12 * (19 * linear + 2 * 19**2 * 192) + 15 * 9 * 192 * 4
    assert case.work.flops == 2 * 2 * flops


@pytest.mark.parametrize("name", operations.OPERATIONS)
def test_the_ways_of_an_operation_agree(name):
    case = build(replace(SPEC, what=name, size=(48, 48), device=DEVICE), sets=1)
    found = {contender.name: contender.call(0) for contender in case.contenders}
    wanted = found.pop("wsssfast")
    for way, result in found.items():
        if name == "attention":
            if way == case.baseline:  # output only
                assert close(result, wanted[0])
                continue
            flat, ours = (result[0], *result[1]), (wanted[0], *wanted[1])
        else:
            flat, ours = ((x,) if torch.is_tensor(x) else x for x in (result, wanted))
        for mean, other in zip(flat, ours, strict=True):
            if mean.ndim == other.ndim - 1:  # class rows by layer
                other = other.mean(0)
            assert close(mean, other), way
    assert case.work.bytes > 0 and case.work.flops > 0


@pytest.mark.parametrize("name", forward._COMPILED)
def test_compiled_peers_are_one_graph_each(name):
    model, images, chosen = tiny_model(), torch.randn(2, 3, 40, 56), torch.tensor([[0, 1], [1, 2]])
    way = partial(forward.WAYS[name], model)
    compiled = torch.compile(way, dynamic=False, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images, chosen), way(images, chosen))


def test_work_is_counted_from_the_shapes():
    shape = shape_of(replace(SPEC, what="refine", size=(224, 224), classes=20))
    assert (shape.patches, shape.tokens, shape.related) == (196, 216, 58)
    assert (shape.layers, shape.heads, shape.width) == (12, 3, 64)
    work = operations.OPERATIONS["propagate_gather"].work(shape)
    assert work == Work(4 * 2 * (196 * 196 + 2 * 2 * 196), 2 * 2 * 2 * 196 * 196)
    mean = operations.OPERATIONS["attention_mean"].work(shape)
    assert mean.flops == 2 * 2 * 3 * 64 * 196 * (12 * 196 + 3 * 20)


def test_precisions_that_do_not_matter_are_measured_once():
    options = BenchOptions(sizes=((32, 32),), precisions=("fp32", "bf16"))
    found = [(spec.what, spec.precision) for spec in specs_of(options)]
    assert ("forward", "bf16") in found and ("attention", "bf16") in found
    assert [what for what, precision in found if what == "refine"] == ["refine"]
    gpu = replace(options, precisions=(), device="cuda").resolved()
    assert (gpu.batches, gpu.precisions, gpu.compiled) == (
        (1, 16, 64),
        ("fp32", "bf16", "fp16"),
        True,
    )
    assert not options.resolved().compiled


def test_turns_go_on_when_a_contender_fails():
    order = []

    def out_of_memory(n):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    def late(n):
        order.append(n)
        if len(order) > 4:
            raise RuntimeError("boom\nbacktrace")

    contenders = [
        Contender("good", lambda n: None),
        Contender("large", out_of_memory),
        Contender("late", late),
    ]
    turns = take_turns(contenders, "cpu", 1e-3, sets=3)
    assert turns.times["good"].runs >= 5
    assert turns.failed == {
        "large": "out of memory",
        "late": "failed: RuntimeError: boom backtrace",
    }
    assert not turns.graphs


def test_a_case_that_cannot_be_built_does_not_lose_the_others(monkeypatch):
    def no_room(spec, sets):
        if spec.batch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return build(spec, sets)

    monkeypatch.setattr(run, "build", no_room)
    monkeypatch.setattr(run, "measure_peaks", lambda *given: Peaks(1e10, {"fp32": 1e11}))
    options = BenchOptions(
        what=("operations",), arch="deit_tiny_patch16_224", classes=3, sizes=((32, 32),),
        batches=(2, 1), seconds=1e-3, memory=False,
    )  # fmt: skip
    done = []
    found = run.bench(options, done.append)
    assert len(done) == len(specs_of(options))
    assert {row.note for row in found.rows if row.batch == 2} == {"out of memory"}
    assert all(row.runs >= 5 for row in found.rows if row.batch == 1)


def test_spread_is_median_p20_p80():
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == Times(3.5, 2.0, 5.0, 6)


def rows():
    contenders = tuple(Contender(name, lambda n: None) for name in ("floor", "ours", "large"))
    case = Case(SPEC, 15, contenders, "floor", Work(bytes=4_000_000, flops=1_000_000))
    turns = Turns(
        {"floor": Times(2.0, 1.9, 2.2, 7), "ours": Times(3.0, 2.5, 3.5, 7)},
        {"large": "out of memory"},
        {"ours"},
    )
    return report.rows_of(case, turns, {"ours": 5_000_000}, Peaks(1e10, {"fp32": 1e12}))


def test_rows_hold_ratios_and_shares_of_the_peak():
    floor, ours, large = rows()
    assert (floor.ratio, ours.ratio, large.ratio) == (1.0, 1.5, None)
    assert (ours.median_ms, ours.p20_ms, ours.p80_ms, ours.runs) == (3.0, 2.5, 3.5, 7)
    # 4 MB at 10 GB/s take 0.4 ms, 1 MFLOP at 1 TFLOP/s takes 1 us: bytes bind, 0.4 of 2 ms
    assert (round(floor.percent_of_peak, 6), floor.bound) == (20.0, "bytes")
    assert ours.images_per_second == pytest.approx(2 / 3e-3)
    assert (floor.peak_mb, ours.peak_mb) == (None, 5.0)
    assert (floor.graph, ours.graph) == (False, True)
    assert (large.median_ms, large.note) == (None, "out of memory")


def test_the_table_shows_all_rows_and_the_summary_is_json():
    table = report.table_rows(rows())
    assert [len(line) for line in table] == [len(report.HEADER)] * 3
    assert table[1][1:6] == ["ours", "3", "2.5", "3.5", "1.500"]
    assert table[2][1:3] == ["large", "out of memory"]
    options = BenchOptions(device="cpu").resolved()
    found = report.summary(options, rows(), Peaks(1e10, {"fp32": 1e12}))
    again = json.loads(json.dumps(found))
    assert {"device", "threads", "versions", "backend", "options", "peaks", "rows"} <= set(again)
    assert {"wsssfast", "torch", "numpy", "python"} <= set(again["versions"])
    assert again["options"]["sizes"] == ["224x224", "500x375", "768x768"]
    assert again["rows"][1]["ratio"] == 1.5
    assert report.failures(rows()) == []
    assert report.failures([report.left_out(SPEC, "failed: RuntimeError: x")]) != []


def test_without_a_baseline_there_is_no_ratio():
    contenders = (Contender("floor", lambda n: None), Contender("ours", lambda n: None))
    turns = Turns({"ours": Times(1.0, 1.0, 1.0, 5)}, {"floor": "out of memory"})
    floor, ours = report.rows_of(
        Case(SPEC, 15, contenders, "floor"), turns, {}, Peaks(1.0, {"fp32": 1.0})
    )
    assert (floor.note, ours.ratio, ours.percent_of_peak) == ("out of memory", None, None)


def test_memory_is_what_one_call_adds():
    spec = replace(SPEC, what="attention", size=(320, 320), batch=1)
    stacked = 2 * 12 * 3 * 404**2 * 4  # the list of all layers' attention and the stack of it
    fresh = FreshProcesses()
    assert 0.8 * stacked < fresh.peak(spec, "stacked") < 2 * stacked
    assert fresh.peak(spec, "SDPA, no attention") < 0.3 * stacked


def test_text_of_options_is_read_or_refused():
    assert parse_sizes("224x224, 500x375") == ((224, 224), (500, 375))
    assert parse_counts("1,16") == (1, 16) and parse_counts("") == ()
    assert parse_names("bf16,fp32,bf16", ("fp32", "bf16")) == ("bf16", "fp32")
    for wrong in ("224", "224x", "x3", "0x4", "-1x4", "1e3x4", "99999x1"):
        with pytest.raises(WsssError, match="Expected sizes HxW"):
            parse_sizes(wrong)
    for wrong in ("0", "-1", "two", "1.5"):
        with pytest.raises(WsssError, match="Expected whole numbers"):
            parse_counts(wrong)
    with pytest.raises(WsssError, match="out of fp32, found 'fp64'"):
        parse_names("fp64", ("fp32",))
    for wrong in ({"classes": 0}, {"per_image": 30}, {"sizes": ()}, {"seconds": 0.0}):
        with pytest.raises(WsssError):
            BenchOptions(**wrong)
    with pytest.raises(WsssError):
        BenchOptions(seconds=math.nan)
    with pytest.raises(WsssError, match="at least one patch"):
        shape_of(replace(SPEC, size=(15, 64)))


@pytest.mark.gpu
def test_on_a_gpu_events_and_graphs_time_the_operations():
    from wsssfast.bench.memory import cuda_peak

    case = build(replace(SPEC, what="refine", size=(224, 224), device="cuda"), sets=2)
    turns = take_turns(case.contenders, "cuda", 0.1, sets=2)
    assert not turns.failed and turns.graphs
    assert timing.graphed(lambda n: torch.ones(1, device="cuda").item(), 1) is None
    assert cuda_peak(case.contenders[0].call) > 0
