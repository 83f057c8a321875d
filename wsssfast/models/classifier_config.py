"""What rebuilds a classifier's structure."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from wsssfast.errors import WsssError
from wsssfast.models.backbone import preprocessing

Statistics = tuple[float, float, float]  # per channel, of RGB in [0, 1]


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything that rebuilds a classifier's structure.

    Attributes:
        class_names: the C classes, in the order of the class tokens.
        arch: timm's name of the backbone.
        arch_options: keyword arguments of that backbone.
        image_size: training side in pixels, a multiple of the patch size.
        patch_head: whether there is a convolutional patch head (MCTformer-V2, the paper); without
            one (MCTformer-V1) the CAM is the class-to-patch attention alone.
        mean: per channel, of RGB in [0, 1].
        std: per channel, of RGB in [0, 1].
        names_assumed: whether the class names were only guessed from their number, as for a public
            checkpoint that holds none.
        one_token: whether there is one class token for all classes, as in TS-CAM, not one each.
        patch_decay: patch logits weight the n-th highest score of a class by its n-th power: global
            weighted ranking pooling (MCTformer+: 0.996); 1: the global average.
        split_positions: whether patch positions are resized as MCTformer+ does, apart from those
            of class tokens and without a tenth of a patch added.
        final_norm: whether the backbone's last norm comes before the patch head, as in TS-CAM.
        adaptive_fusion: whether weights of layers and heads are learned, in the manner of WeakTr.
    """

    class_names: tuple[str, ...]
    arch: str = "deit_small_patch16_224"
    arch_options: dict[str, Any] = field(default_factory=dict)
    image_size: int = 224
    patch_head: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    names_assumed: bool = False
    one_token: bool = False
    patch_decay: float = 1.0
    split_positions: bool = False
    final_norm: bool = False
    adaptive_fusion: bool = False

    def __post_init__(self) -> None:
        if (self.one_token or self.adaptive_fusion) and not self.patch_head:
            raise WsssError(
                "Expected a patch head for one class token or adaptive fusion, found none.",
                "Leave --no-patch-head out.",
            )
        if not 0 < self.patch_decay <= 1:
            raise WsssError(f"Expected a patch decay in (0, 1], found {self.patch_decay}.")

    @property
    def tokens(self) -> int:
        """How many class tokens there are."""
        return 1 if self.one_token else len(self.class_names)

    @classmethod
    def for_backbone(
        cls, arch: str, class_names: tuple[str, ...], image_size: int, **arch_options: Any
    ) -> "ClassifierConfig":
        """A configuration with the preprocessing that the backbone's own weights expect.

        Args:
            arch: timm's name, also with the tag of weights, which is not kept:
                vit_small_patch16_224.augreg_in21k.
            class_names: the C classes.
            image_size: training side in pixels.
            arch_options: of the backbone.

        Raises:
            WsssError: weights that timm does not know.
        """
        mean, std = preprocessing(arch)
        name, _, _ = arch.partition(".")
        return cls(class_names, name, arch_options, image_size, mean=mean, std=std)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; what makes other methods only where it is used."""
        told = asdict(self)
        return {k: v for k, v in told.items() if k not in _OF_OTHERS or v != _OF_OTHERS[k]}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "ClassifierConfig":
        """From `to_json`'s result. Raises TypeError or ValueError on anything else."""
        mean, std = statistics_of(found)
        if not 1 <= found["image_size"] <= 8192:
            raise ValueError("an image size between 1 and 8192")
        return cls(
            class_names=tuple(str(name) for name in found["class_names"]),
            arch=str(found["arch"]),
            arch_options=dict(found["arch_options"]),
            image_size=int(found["image_size"]),
            patch_head=bool(found["patch_head"]),
            mean=mean,
            std=std,
            names_assumed=bool(found["names_assumed"]),
            **{key: type(usual)(found.get(key, usual)) for key, usual in _OF_OTHERS.items()},
        )


_OF_OTHERS: dict[str, Any] = {
    field.name: field.default
    for field in fields(ClassifierConfig)
    if field.name in ("one_token", "patch_decay", "split_positions", "final_norm",
                      "adaptive_fusion")
}  # fmt: skip


def statistics_of(found: dict[str, Any]) -> tuple[Statistics, Statistics]:
    """`mean` and `std` of a configuration; raises TypeError or ValueError where they are none."""
    mean, std = (tuple(float(x) for x in found[key]) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError("mean and std have three values each")
    if not all(map(math.isfinite, mean)) or not all(0 < x < math.inf for x in std):
        raise ValueError("mean and std are finite, std above 0")
    return mean, std
