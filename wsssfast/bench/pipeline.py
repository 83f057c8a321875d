"""What every stage of the pipeline costs on this machine: the columns of the paper's Table 1.

Each stage runs in a process of its own on random images, with the functions that the commands run,
long enough to be timed; hours are what that speed takes for a whole data set. Decoding, writing and
scoring are left out: exports overlap them (docs/export.md).
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wsssfast.bench.shapes import config_of
from wsssfast.errors import WsssError
from wsssfast.precision import Precision, autocast

STAGES = (
    "train", "export-cams", "export-labels crf", "train-affinity", "export-labels affinity",
    "train-seg", "predict",
)  # fmt: skip


@dataclass(frozen=True)
class PriceOptions:
    """What is priced; the defaults are the paper's VOC.

    Attributes:
        stages: which.
        arch: of the classifier.
        trunk: of AffinityNet and segmenter: resnet38, vit (the classifier's), or timm's name.
        classes: of the data set.
        images: that are trained on and labelled.
        test_images: that are predicted.
        size: (height, width) of an image.
        device: cpu or cuda.
        precision: of training and export: fp32, bf16 or fp16.
        seconds: to measure a stage for, after a first step.
    """

    stages: tuple[str, ...] = STAGES
    arch: str = "deit_small_patch16_224"
    trunk: str = "resnet38"
    classes: int = 20
    images: int = 10582
    test_images: int = 1449
    size: tuple[int, int] = (375, 500)
    device: str = "cpu"
    precision: Precision = "fp32"
    seconds: float = 10.0

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise WsssError(
                f"Expected stages out of {', '.join(STAGES)}, found {unknown or 'none'}."
            )
        if min(self.images, self.test_images, self.classes, *self.size) < 1 or self.classes > 254:
            raise WsssError("Expected at least one image and class, at most 254 classes.")


@dataclass(frozen=True)
class Price:
    """What one stage costs.

    Attributes:
        stage: which.
        network: what runs; empty where none does.
        macs: multiply-adds of one forward pass of one image, as the stage sees it.
        parameters: of the network.
        images_per_second: measured.
        passes: images that the stage sees over all epochs.
        hours: passes at that speed.
        memory: peak bytes: of a GPU as PyTorch's allocator counts it, else of the process.
        error: why nothing was measured; empty where it was.
    """

    stage: str
    network: str = ""
    macs: int = 0
    parameters: int = 0
    images_per_second: float = 0.0
    passes: int = 0
    hours: float = 0.0
    memory: int = 0
    error: str = ""


@dataclass(frozen=True)
class Work:
    """A stage ready to run.

    Attributes:
        network: its name.
        model: for MACs and parameters; None where there is none.
        shape: of the images that it sees, [B, 3, H, W].
        step: does `images` images.
        images: how many.
        passes: of the whole stage.
    """

    network: str
    model: nn.Module | None
    shape: tuple[int, int, int, int]
    step: Callable[[], object]
    images: int
    passes: int


def price(
    options: PriceOptions,
    progress: Callable[[int], None],
    begin: Callable[[str], None] = lambda stage: None,
) -> list[Price]:
    """Measure the stages, one after the other, each in a process of its own.

    Args:
        options: what is priced.
        progress: called with 1 after each stage.
        begin: called with the name of each stage before it.
    """
    _require_networks(options)
    found = []
    for stage in options.stages:
        begin(stage)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                threads = torch.get_num_threads()
                found.append(pool.submit(measured, stage, options, threads).result())
            except (RuntimeError, MemoryError, WsssError) as error:  # a killed process too
                lines = str(error).splitlines() or [type(error).__name__]
                found.append(Price(stage, error=lines[0][:200]))
        progress(1)
    return found


def measured(stage: str, options: PriceOptions, threads: int) -> Price:
    """One stage, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    work = _WORK[stage](options)
    gpu = options.device != "cpu"

    def run() -> None:
        work.step()
        if gpu:
            torch.cuda.synchronize()

    run()  # what is set up once
    times, begin = 0, time.perf_counter()
    while times < 2 or time.perf_counter() - begin < options.seconds:
        run()
        times += 1
    speed = times * work.images / (time.perf_counter() - begin)
    memory = (
        torch.cuda.max_memory_allocated() if gpu
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )  # fmt: skip
    return Price(
        stage, work.network, _macs(work), _parameters(work.model), speed, work.passes,
        work.passes / speed / 3600, memory,
    )  # fmt: skip


def rows(prices: list[Price]) -> list[list[str]]:
    """Of a table: stage, network, GMACs, M parameters, images/s, hours, MB."""
    return [
        [one.stage, one.network, *([one.error, "", "", "", ""] if one.error else [
            f"{one.macs / 1e9:.1f}" if one.macs else "",
            f"{one.parameters / 1e6:.1f}" if one.parameters else "",
            f"{one.images_per_second:.3g}", f"{one.hours:.2f}", f"{one.memory / 1e6:.0f}",
        ])]
        for one in prices
    ]  # fmt: skip


def to_json(options: PriceOptions, prices: list[Price]) -> dict[str, Any]:
    """All as plain JSON types."""
    return {"options": asdict(options), "stages": [asdict(one) for one in prices]}


def _macs(work: Work) -> int:
    """Of one forward pass of one image, counted by PyTorch (a multiply-add counts as one)."""
    if work.model is None:
        return 0
    model = work.model.to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *work.shape[1:], device="meta"))
    return int(counter.get_total_flops()) // 2


def _parameters(model: nn.Module | None) -> int:
    return sum(p.numel() for p in model.parameters()) if model else 0


def _trained(
    name: str,
    model: nn.Module,
    options: PriceOptions,
    shape: tuple[int, int, int, int],
    loss: Callable[[Any], Tensor],
    epochs: int,
) -> Work:
    """Steps of training on random images."""
    model.to(options.device).train()
    images = torch.randn(shape, device=options.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def step() -> None:
        with autocast(options.device, options.precision):
            value = loss(model(images))
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return Work(name, model, shape, step, shape[0], epochs * options.images)


def _require_networks(options: PriceOptions) -> None:
    """Refuse names of networks that there are none of, before anything is measured.

    Raises:
        WsssError: an unknown backbone or trunk.
    """
    from wsssfast.models.classifier import ClassTokenViT

    with torch.device("meta"):
        if any(stage in options.stages for stage in ("train", "export-cams")):
            ClassTokenViT(config_of(options.arch, options.classes))
        if any("affinity" in stage for stage in options.stages):
            _affinity_net(replace(options, device="meta"))
        if any(stage in options.stages for stage in ("train-seg", "predict")):
            _segmenter(replace(options, device="meta"))


def _names(options: PriceOptions) -> tuple[str, ...]:
    return tuple(f"class{n}" for n in range(options.classes))


def _classifier(options: PriceOptions) -> Any:
    from wsssfast.bench.forward import random_model

    return random_model(config_of(options.arch, options.classes)).to(options.device)


def _trunk(options: PriceOptions) -> dict[str, Any]:
    from wsssfast.models.trunk import VIT

    vit = config_of(options.arch, options.classes) if options.trunk == VIT else None
    return {"trunk": options.trunk, "vit": vit}


def _image(options: PriceOptions) -> Tensor:
    """A random smooth image uint8 [H, W, 3]."""
    coarse = torch.rand(1, 3, 8, 8)
    whole = nn.functional.interpolate(coarse, options.size, mode="bicubic").clamp(0, 1)
    return (whole[0] * 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def _train(options: PriceOptions) -> Work:
    from wsssfast.models.losses import classifier_loss
    from wsssfast.training.options import ClassifierOptions

    chosen, model = ClassifierOptions(), _classifier(options)
    shape = (chosen.batch_size, 3, 224, 224)
    targets = torch.randint(0, 2, (shape[0], options.classes), device=options.device).float()
    return _trained(
        options.arch, model, options, shape,
        lambda logits: classifier_loss(logits, targets), chosen.epochs,
    )  # fmt: skip


def _export_cams(options: PriceOptions) -> Work:
    from PIL import Image

    from wsssfast.cam_options import CamOptions
    from wsssfast.compute import stage_grids
    from wsssfast.memory import good_batch

    model = _classifier(options)
    chosen = CamOptions(precision=options.precision)
    height, width = options.size
    count = good_batch(model, (width, height), chosen)
    images = [Image.fromarray(_image(options).numpy()) for _ in range(count)]
    labels = [(0, options.classes - 1)] * count if options.classes > 1 else [(0,)] * count
    return Work(
        options.arch, model, (count, 3, height, width),
        partial(stage_grids, model, images, labels, chosen), count, options.images,
    )  # fmt: skip


def _maps(options: PriceOptions) -> Tensor:
    """Maps [2, H, W] in [0, 1] of two classes."""
    coarse = torch.rand(1, 2, 12, 16)
    found = nn.functional.interpolate(coarse, options.size, mode="bilinear")[0]
    return found.to(options.device)


def _label_crf(options: PriceOptions) -> Work:
    from wsssfast.labels.options import LabelOptions
    from wsssfast.labels.rules import pseudo_labels

    chosen = LabelOptions("final", background_exponent=(1, 12), refine="crf")
    cam, image = _maps(options), _image(options).numpy()
    return Work(
        "", None, (1, 3, *options.size),
        partial(pseudo_labels, [cam], [(0, 1)], [image], chosen), 1, options.images,
    )  # fmt: skip


def _affinity_net(options: PriceOptions) -> Any:
    from wsssfast.models.affinity import AffinityConfig, AffinityNet

    return AffinityNet(AffinityConfig(_names(options), **_trunk(options))).to(options.device)


def _train_affinity(options: PriceOptions) -> Work:
    from wsssfast.training.affinity import affinity_loss
    from wsssfast.training.options import AffinityOptions

    chosen = AffinityOptions()
    shape = (chosen.batch_size, 3, chosen.crop, chosen.crop)
    cells = torch.randint(0, 3, (shape[0], shape[2] // 8, shape[3] // 8), dtype=torch.uint8)
    cells = cells.to(options.device)
    return _trained(
        f"AffinityNet, {options.trunk}", _affinity_net(options), options, shape,
        lambda affinity: affinity_loss(affinity, cells), chosen.epochs,
    )  # fmt: skip


def _label_walk(options: PriceOptions) -> Work:
    from wsssfast.labels.options import LabelOptions, Walk
    from wsssfast.labels.rules import class_scores
    from wsssfast.labels.walk import seen_by, walked

    net = _affinity_net(options).eval()
    cam, image = _maps(options), _image(options).to(options.device)
    chosen = LabelOptions("final", (0.4,), refine="affinity", walk=Walk("", 8, 256))

    def step() -> object:
        return walked(cam, seen_by(net, image), chosen, class_scores)

    return Work(
        f"AffinityNet, {options.trunk}", net, (1, 3, *options.size), step, 1, options.images
    )


def _segmenter(options: PriceOptions) -> Any:
    from wsssfast.models.segmenter import Segmenter, SegmenterConfig

    return Segmenter(SegmenterConfig(_names(options), **_trunk(options))).to(options.device)


def _train_seg(options: PriceOptions) -> Work:
    from wsssfast.models.segmenter import segmenter_loss

    shape = (4, 3, 321, 321)  # method §7, as the 30 epochs
    targets = torch.randint(0, options.classes + 1, (4, 321, 321), device=options.device)
    return _trained(
        f"segmenter, {options.trunk}", _segmenter(options), options, shape,
        lambda scores: segmenter_loss(scores, targets), 30,
    )  # fmt: skip


def _predict(options: PriceOptions) -> Work:
    from wsssfast.kernels import dense_crf
    from wsssfast.labels.options import TEST_CRF
    from wsssfast.labels.rules import energies
    from wsssfast.segment import SegmentOptions, probabilities

    model = _segmenter(options).eval()
    image = _image(options).to(options.device)
    chosen = SegmentOptions((0.5, 0.75, 1.0, 1.25, 1.5), "max", flip=False)

    def step() -> object:
        return dense_crf([image], [energies(probabilities(model, image, chosen))], TEST_CRF)

    return Work(
        f"segmenter, {options.trunk}", model, (1, 3, *options.size), step, 1, options.test_images
    )


_WORK: dict[str, Callable[[PriceOptions], Work]] = dict(
    zip(
        STAGES,
        (_train, _export_cams, _label_crf, _train_affinity, _label_walk, _train_seg, _predict),
        strict=True,
    )
)
