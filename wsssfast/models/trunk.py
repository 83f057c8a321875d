"""What AffinityNet and segmenters share: the configuration of a network on one of many trunks."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

from wsssfast.errors import WsssError
from wsssfast.models.classifier_config import ClassifierConfig, statistics_of

T = TypeVar("T")
RESNET38, VIT = "resnet38", "vit"


@dataclass(frozen=True)
class TrunkConfig:
    """Everything that rebuilds a network's structure.

    Attributes:
        class_names: of the data set that it was trained on.
        trunk: resnet38; timm's name of a convolutional network; or vit, the network of `vit`.
        vit: a classifier's configuration.
        mean: per channel, of RGB in [0, 1].
        std: per channel, of RGB in [0, 1].
    """

    class_names: tuple[str, ...]
    trunk: str = RESNET38
    vit: ClassifierConfig | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "vit": self.vit and self.vit.to_json()}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """From `to_json`'s result. Raises TypeError or ValueError on anything else."""
        vit = found["vit"]
        mean, std = statistics_of(found)
        return cls(
            class_names=tuple(str(name) for name in found["class_names"]),
            trunk=str(found["trunk"]),
            vit=None if vit is None else ClassifierConfig.from_json(vit),
            mean=mean,
            std=std,
        )


def of_timm(arch: str, stride: int, build: Callable[[str], T]) -> T:
    """What is built on a convolutional network of timm.

    Args:
        arch: its name; a checkpoint may say it, and timm opens addresses too.
        stride: of its features, for the error.
        build: makes it.

    Raises:
        WsssError: no such network, or one without such features.
    """
    try:
        if not arch.isidentifier():
            raise ValueError("no name")
        return build(arch)
    except Exception as error:  # whatever a network of timm that has no such features raises
        raise WsssError(
            f"Expected resnet38, vit, or a convolutional network of timm with features at stride "
            f"{stride}, found {arch[:80]!r}: {type(error).__name__}.",
            "Such as resnet50.",
        ) from error
