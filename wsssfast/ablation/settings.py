"""What is scored: one stage and the options that matter for it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal

from wsssfast import kernels
from wsssfast.cam_options import CamOptions
from wsssfast.errors import WsssError

_MODULATED = ("modulated", "final")
_PROPAGATED = ("original+p2p", "original+c2p+p2p", "final")


@dataclass(frozen=True)
class Setting:
    """One way to refine; fields that do not matter for its stage are None.

    Attributes:
        stage: of `kernels.STAGES`.
        scales: of the image, summed.
        c2p_layers: last layers averaged into the class-to-patch attention.
        p2p_layers: last layers averaged into the patch-to-patch attention.
        propagation: gather, scatter or geometric.
        related_by: what ranks the related patches.
        ratio: share of related patches.
        alpha: weight of the related mean.
    """

    stage: str
    scales: tuple[float, ...] = (1.0,)
    c2p_layers: int | None = None
    p2p_layers: int | None = None
    propagation: kernels.Propagation | None = None
    related_by: Literal["attention", "tokens"] | None = None
    ratio: float | None = None
    alpha: float | None = None

    @classmethod
    def of(cls, stage: str, options: CamOptions) -> "Setting":
        """A stage with those of the options that matter for it."""
        modulated, propagated = stage in _MODULATED, stage in _PROPAGATED
        ranked = modulated and options.related_by == "attention"
        return cls(
            stage,
            options.scales,
            options.c2p_layers if modulated or "c2p" in stage else None,
            options.p2p_layers if propagated or ranked else None,
            options.propagation if propagated else None,
            options.related_by if modulated else None,
            options.ratio if modulated else None,
            options.alpha if modulated else None,
        )

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "Setting":
        """From what `to_json` tells. Raises TypeError where it is something else."""
        return cls(**{**told, "scales": tuple(told["scales"])})

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON types."""
        return {**asdict(self), "scales": list(self.scales)}

    def options(self, base: CamOptions) -> CamOptions:
        """`base` with this setting in it."""
        chosen = {k: v for k, v in vars(self).items() if v is not None and k != "stage"}
        return replace(base, stages=(self.stage,), **chosen)


def settings_of(
    base: CamOptions,
    *,
    stages: Sequence[str] = kernels.STAGES,
    propagations: Sequence[kernels.Propagation] = kernels.PROPAGATIONS,
    related_by: Sequence[Literal["attention", "tokens"]] = ("attention", "tokens"),
    ratios: Sequence[float] = (),
    alphas: Sequence[float] = (),
    c2p_ranges: Sequence[int] = (),
    p2p_ranges: Sequence[int] = (),
    scale_sets: Sequence[tuple[float, ...]] = (),
    grid: bool = False,
) -> tuple[Setting, ...]:
    """The settings to score, each once.

    Stages are combined with orientations and rankings. Everything else is varied for the furthest
    of the stages, one option at a time, with all others as in `base`.

    Args:
        base: where each option stays while another is varied.
        stages: to score.
        propagations: orientations of Eq. 6.
        related_by: rankings.
        ratios: of related patches.
        alphas: weights of the related mean.
        c2p_ranges: numbers of last layers.
        p2p_ranges: likewise; each takes another forward pass.
        scale_sets: of the image.
        grid: every ratio with every alpha instead of one at a time.
    """
    if not stages or not propagations or not related_by:
        raise WsssError("Expected a stage, an orientation and a ranking or more, found none.")
    if grid and not (ratios and alphas):
        raise WsssError("Expected ratios and alphas for the grid of both, found none of one.")
    found = [
        Setting.of(stage, replace(base, propagation=way, related_by=rank))
        for stage, way, rank in product(stages, propagations, related_by)
    ]
    lines = [{"ratio": ratio} for ratio in ratios] + [{"alpha": alpha} for alpha in alphas]
    if grid:
        lines = [{"ratio": ratio, "alpha": alpha} for ratio, alpha in product(ratios, alphas)]
    changes: list[dict[str, Any]] = [
        *lines,
        *({"c2p_layers": layers} for layers in c2p_ranges),
        *({"p2p_layers": layers} for layers in p2p_ranges),
        *({"scales": scales} for scales in scale_sets),
    ]
    last = max(stages, key=kernels.STAGES.index)
    found += [Setting.of(last, replace(base, **change)) for change in changes]
    return tuple(dict.fromkeys(found))
