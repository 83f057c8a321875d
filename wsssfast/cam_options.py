"""How a CAM is computed: every option that changes its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from wsssfast import kernels
from wsssfast.errors import WsssError
from wsssfast.precision import Precision
from wsssfast.shards.format import FORMAT_VERSION

RelatedBy = Literal["attention", "tokens"]
_CHOICES = {
    "propagation": kernels.Propagation, "related_by": RelatedBy, "fuse": kernels.Fuse,
    "precision": Precision,
}  # fmt: skip
_TYPES: dict[str, type] = {
    "stages": tuple, "scales": tuple, "include_self": bool, "flip": bool, "c2p_layers": int,
    "p2p_layers": int,
}  # fmt: skip


@dataclass(frozen=True)
class CamOptions:
    """How a CAM is computed; every field changes the numbers.

    Attributes:
        stages: which stages of the refinement, names of `kernels.STAGES`.
        ratio: share of related patches in (0, 1] (Fig. 5: best 0.3).
        alpha: weight of the related mean (Table 3: best 1.2; 0 is MCTformer-V2).
        propagation: Eq. 6 as MCTformer computes it (gather), to the letter (scatter), or with the
            geometric mean of both (geometric, ours).
        related_by: rank related patches by p2p attention (the paper) or by token similarity.
        include_self: whether a patch may be related to itself.
        fuse: what joins CAM and attention: their product (Eq. 5), or its root (MCTformer+).
        c2p_layers: last layers averaged into the class-to-patch attention.
        p2p_layers: last layers averaged into the patch-to-patch attention.
        scales: of the image, summed.
        flip: whether the horizontal flip is run and summed too.
        precision: of the network; maps are float32 always.
        predict_above: the classifier's score above which a class is taken as present, in place of
            the data set's image-level labels; by the first of the scales.
    """

    stages: tuple[str, ...] = ("final",)
    ratio: float = 0.3
    alpha: float = 1.2
    propagation: kernels.Propagation = "gather"
    related_by: RelatedBy = "attention"
    include_self: bool = True
    fuse: kernels.Fuse = "product"
    c2p_layers: int = 3
    p2p_layers: int = 12
    scales: tuple[float, ...] = (1.0,)
    flip: bool = True
    precision: Precision = "fp32"
    predict_above: float | None = None

    def __post_init__(self) -> None:
        for key, wanted in _TYPES.items():
            if type(getattr(self, key)) is not wanted:
                found = str(getattr(self, key))[:40]
                raise WsssError(f"Expected {key} of type {wanted.__name__}, found {found!r}.")
        unknown = [stage for stage in self.stages if stage not in kernels.STAGES]
        if unknown or not self.stages or len(set(self.stages)) != len(self.stages):
            raise WsssError(
                f"Expected stages out of {', '.join(kernels.STAGES)}, each once, found "
                f"{','.join(self.stages)!r}."
            )
        for key, kind in _CHOICES.items():
            if getattr(self, key) not in get_args(kind):
                raise WsssError(
                    f"Expected {key} out of {', '.join(get_args(kind))}, found "
                    f"{str(getattr(self, key))[:40]!r}."
                )
        if not self.scales or not all(0.05 <= scale <= 16 for scale in self.scales):
            raise WsssError(f"Expected scales between 0.05 and 16, found {self.scales}.")
        if not 0 < self.ratio <= 1:
            raise WsssError(f"Expected a ratio in (0, 1], found {self.ratio}.")
        if not 0 <= self.alpha <= 1e6:
            raise WsssError(f"Expected an alpha of 0 or more, found {self.alpha}.")
        if min(self.c2p_layers, self.p2p_layers) < 1:
            raise WsssError("Expected at least one layer in each layer range.")
        if self.predict_above is not None and not 0 <= self.predict_above <= 1:
            raise WsssError(f"Expected a score between 0 and 1, found {self.predict_above}.")

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    def epsilon(self, stage: str, depth: int) -> float:
        """Epsilon of the min-max for a stage (method §§2, 5).

        [M] adds 1e-8 to maps that are sums over layers; ours are means, hence smaller by the number
        of layers that entered, and the epsilon with them. MCTformer+ has a mean for c2p too.
        """
        epsilon = 1e-8
        if self.fuse == "product" and ("c2p" in stage or stage in ("modulated", "final")):
            epsilon /= min(self.c2p_layers, depth)
        if stage.endswith("p2p") or stage == "final":
            epsilon /= min(self.p2p_layers, depth)
        return epsilon


def identity(
    class_names: Sequence[str],
    weights: str,
    options: CamOptions,
    fingerprint: str,
    shard_size: int,
) -> dict[str, Any]:
    """Configuration identity of CAM shards: all that changes the numbers, nothing else."""
    return {
        "format_version": FORMAT_VERSION,
        "class_names": list(class_names),
        "weights": weights,
        "dataset": fingerprint,
        "labels": "image" if options.predict_above is None else "predicted",
        "shard_size": shard_size,
        **options.to_json(),
    }
