"""Everything that changes the result of a training run, and nothing else."""

from dataclasses import dataclass
from typing import Any, Literal

from wsssfast.errors import WsssError
from wsssfast.precision import Precision

Optimiser = Literal["adamw", "adam", "sgd"]
RateCurve = Literal["cosine", "poly"]


@dataclass(frozen=True)
class Schedule:
    """How a network is optimised.

    Attributes:
        epochs: passes over the data; a last incomplete batch of an epoch is dropped.
        batch_size: images a step, over all workers and accumulation steps together.
        accumulate: parts in which each worker takes its share of a step; saves memory.
        optimiser: AdamW (decoupled weight decay), Adam or SGD (weight decay in the gradient).
        momentum: of SGD.
        rate: peak learning rate for a batch of rate-batch images; scales with the batch size.
        rate_batch: images a step that the rate is meant for; equal to batch-size: as given.
        new_rate: factor on the rate of what starts untrained (class tokens, heads).
        warmup_epochs: epochs over which the rate rises linearly.
        warmup_rate: where it starts.
        curve: how the rate falls after that: half a cosine over all epochs, or with the power 0.9
            of the steps that are left.
        final_rate: where the cosine ends.
        weight_decay: on matrices; none on vectors, biases, class tokens and positions.
        precision: of the forward pass (autocast); weights and optimiser stay float32.
        seed: of initialisation, order, augmentation and stochastic depth.
    """

    epochs: int = 60
    batch_size: int = 64
    accumulate: int = 1
    optimiser: Optimiser = "adamw"
    momentum: float = 0.9
    rate: float = 5e-4
    rate_batch: int = 512
    new_rate: float = 1.0
    warmup_epochs: float = 5.0
    warmup_rate: float = 1e-6
    curve: RateCurve = "cosine"
    final_rate: float = 1e-5
    weight_decay: float = 0.05
    precision: Precision = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        least_one = ("epochs", "batch_size", "accumulate", "rate_batch")
        require(self, least_one, 1, 10**9)
        require(self, ("rate", "new_rate"), 1e-12, 1e3)
        require(self, ("warmup_rate", "final_rate", "weight_decay"), 0, 1e3)
        require(self, ("warmup_epochs",), 0, self.epochs)
        require(self, ("momentum",), 0, 0.9999)
        require(self, ("seed",), 0, 2**32 - 1)

    @property
    def peak_rate(self) -> float:
        """The highest learning rate that a step sees."""
        return self.rate * self.batch_size / self.rate_batch

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON types."""
        return dict(vars(self))


@dataclass(frozen=True)
class ClassifierOptions(Schedule):
    """How the classifier is trained: the schedule, and what is done to the images.

    Attributes:
        drop_path: largest probability of stochastic depth, reached in the last layer.
        least_area: smallest share of the image that a random crop shows.
        resize: side to which that crop is resized before a random square of the image size is cut
            out of it; 0: the image size itself.
        jitter: strength of random brightness, contrast and saturation.
        rand_augment: timm's RandAugment setting, such as rand-m9-mstd0.5-inc1; empty: none.
        erase: probability of erasing a random rectangle.
        contrast: weight of MCTformer+'s contrast between class tokens.
    """

    drop_path: float = 0.1
    least_area: float = 0.3
    resize: int = 0
    jitter: float = 0.4
    rand_augment: str = ""
    erase: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("jitter", "erase"), 0, 1)
        require(self, ("contrast",), 0, 1e3)
        require(self, ("drop_path",), 0, 0.95)
        require(self, ("least_area",), 1e-3, 1)
        require(self, ("resize",), 0, 8192)


@dataclass(frozen=True)
class AffinityOptions(Schedule):
    """How AffinityNet is trained: the schedule, and what is done to the images.

    Attributes:
        bias_rate: factor on the rate of biases, over that of the weights beside them.
        crop: side in pixels of the random crops, a multiple of 8; smaller images are padded.
        jitter: strength of random brightness, contrast and saturation; of hue a third.
    """

    epochs: int = 5
    batch_size: int = 8
    optimiser: Optimiser = "sgd"
    rate: float = 0.01
    rate_batch: int = 8
    new_rate: float = 10.0
    warmup_epochs: float = 0.0
    final_rate: float = 0.0
    curve: RateCurve = "poly"
    weight_decay: float = 5e-4
    bias_rate: float = 2.0
    crop: int = 448
    jitter: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("jitter",), 0, 1)
        require(self, ("bias_rate",), 1e-12, 1e3)
        require(self, ("crop",), 72, 8192)  # pairs begin in a grid of 5 x 9 cells and more
        if self.crop % 8:
            raise WsssError(f"Expected a crop that is a multiple of 8, found {self.crop}.")


@dataclass(frozen=True)
class SegmenterOptions(Schedule):
    """How a segmenter is trained: the schedule, and what is done to the images.

    Attributes:
        drop_path: largest probability of stochastic depth of a ViT, reached in the last layer.
        crop: side in pixels of the random crops; what is smaller is padded and ignored there.
        least_scale: lower end of the random factor on an image's sides before it is cropped.
        most_scale: its upper end.
        jitter: strength of random brightness, contrast and saturation; of hue a third.
        confidence: a pixel counts with the network's own probability of its label to this power,
            which is the generalised cross-entropy of Zhang and Sabuncu (2018); 0: all alike.
    """

    epochs: int = 30
    batch_size: int = 16
    rate: float = 1e-4
    rate_batch: int = 16
    new_rate: float = 10.0
    warmup_epochs: float = 1.0
    curve: RateCurve = "poly"
    drop_path: float = 0.1
    crop: int = 384
    least_scale: float = 0.5
    most_scale: float = 2.0
    jitter: float = 0.4
    confidence: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("jitter",), 0, 1)
        require(self, ("drop_path",), 0, 0.95)
        require(self, ("crop",), 16, 8192)
        require(self, ("least_scale", "most_scale"), 0.05, 20)
        require(self, ("confidence",), 0, 10)
        if self.least_scale > self.most_scale:
            raise WsssError(
                f"Expected least-scale up to most-scale, found {self.least_scale:g} and "
                f"{self.most_scale:g}."
            )


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; nothing here changes its result.

    Attributes:
        loader_workers: processes that decode and augment; 0: this one does it.
        compile: whether torch.compile compiles the network.
        save_minutes: between two saves of the state inside an epoch.
        log_steps: between two writes to the logs.
    """

    loader_workers: int = 2
    compile: bool = False
    save_minutes: float = 10.0
    log_steps: int = 20

    def __post_init__(self) -> None:
        require(self, ("loader_workers",), 0, 1024)
        require(self, ("log_steps",), 1, 10**9)
        require(self, ("save_minutes",), 0, 1e9)


def require(options: object, names: tuple[str, ...], least: float, most: float) -> None:
    """Refuse fields outside [least, most].

    Raises:
        WsssError: names the first.
    """
    for name in names:
        value = getattr(options, name)
        if not least <= value <= most:
            flag = name.replace("_", "-")
            raise WsssError(f"Expected {flag} between {least:g} and {most:g}, found {value}.")
