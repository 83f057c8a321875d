"""What makes a pseudo-label out of a CAM, and the identity of label shards."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from wsssfast.errors import WsssError
from wsssfast.kernels import Pairwise
from wsssfast.shards.format import FORMAT_VERSION
from wsssfast.threshold import background_scores, one_or_two

LABEL_CRF = Pairwise()
TEST_CRF = Pairwise(4, 3, 83, 5, 3)  # of the segmenter's output (method §7)
Refine = Literal["none", "crf", "affinity", "affinity+crf"]
VIT = "vit"  # whose affinity is the classifier's own attention


@dataclass(frozen=True)
class Walk:
    """A random walk of scores over affinities (method §6); the defaults are MCTformer's.

    Attributes:
        by: SHA-256 of the AffinityNet's weights, or `vit`: the classifier's patch-to-patch
            attention, which no training is needed for.
        beta: exponent of affinities.
        steps: of the walk; PSA's 2^logt.
    """

    by: str
    beta: float = 8.0
    steps: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1000:
            raise WsssError(f"Expected a walk's beta above 0 and up to 1000, found {self.beta:g}.")
        if not 0 <= self.steps <= 1_000_000:
            raise WsssError(f"Expected 0 to 1,000,000 steps of the walk, found {self.steps}.")


@dataclass(frozen=True)
class LabelOptions:
    """How masks are made from CAMs; every field changes the numbers.

    One background setting decides between background and class. Of two, a pixel is a class where
    the one with more background says so, background where the one with less does, and is ignored
    between. Where a CRF makes both say so, scores make it a class (as IRN does), exponents
    background (as PSA and MCTformer do).

    Attributes:
        stage: of the CAM shards.
        background: background scores in [0, 1], one or two ascending; none where there are
            exponents.
        background_exponent: exponents a > 0 of a background of (1 - the largest score)^a, one or
            two ascending; a larger one makes less background.
        refine: what is done before the decision: nothing, a random walk over affinities, a dense
            CRF over the image, or one after the other.
        crf: constants of the CRF.
        certainty: the CRF starts not from the scores but from the mask that they make without it,
            which is right with this probability (IRN: 0.7).
        cell: side in pixels of the squares whose mean score decides together; the mask has a value
            for each, as AffinityNet is trained on (8).
        walk: constants of the random walk, where there is one.
    """

    stage: str
    background: tuple[float, ...] = ()
    background_exponent: tuple[float, ...] = ()
    refine: Refine = "none"
    crf: Pairwise = LABEL_CRF
    certainty: float | None = None
    cell: int = 1
    walk: Walk | None = None

    def __post_init__(self) -> None:
        scores, exponents = self.background, self.background_exponent
        if bool(scores) == bool(exponents):
            raise WsssError(
                "Expected one background threshold in [0, 1], or two, or else exponents, found "
                f"{'both' if scores else 'none'}.",
                "Give --background or --background-exponent; `wsssfast evaluate cams` tells the "
                "best threshold where there are masks; without, 0.3 to 0.45 is a start.",
            )
        if scores:
            background_scores(scores)
        if exponents and not (one_or_two(exponents) and all(0 < a <= 1000 for a in exponents)):
            raise WsssError(
                "Expected one background exponent above 0 and up to 1000, or two, the lower "
                f"first, found {','.join(f'{a:g}' for a in exponents)}."
            )
        if self.refine not in get_args(Refine):
            raise WsssError(
                f"Expected a refinement out of {', '.join(get_args(Refine))}, found "
                f"{str(self.refine)[:40]!r}."
            )
        if self.walks != (self.walk is not None):
            raise WsssError(
                f"Expected {'an affinity' if self.walks else 'none'} for the refinement "
                f"{self.refine}, found {'one' if self.walk else 'none'}.",
                "Give --affinity together with --refine affinity or affinity+crf.",
            )
        if not 1 <= self.cell <= 256:
            raise WsssError(f"Expected cells of 1 to 256 pixels, found {self.cell}.")
        if self.certainty is not None and not 0.5 <= self.certainty < 1:
            raise WsssError(f"Expected a certainty from 0.5 to below 1, found {self.certainty:g}.")

    @property
    def walks(self) -> bool:
        """Whether scores walk over affinities."""
        return self.refine.startswith("affinity")

    @property
    def crfs(self) -> bool:
        """Whether a CRF refines them."""
        return self.refine.endswith("crf")

    @property
    def looks(self) -> bool:
        """Whether the image's pixels are needed."""
        return self.crfs or (self.walk is not None and self.walk.by != VIT)

    @property
    def settings(self) -> int:
        """How many background settings there are: 1 or 2."""
        return len(self.background or self.background_exponent)

    def to_json(self) -> dict[str, Any]:
        """Every field that takes part, as plain JSON types."""
        told: dict[str, Any] = {"stage": self.stage}
        if self.background:
            told["background"] = list(self.background)
        else:
            told["background_exponent"] = list(self.background_exponent)
        told["refine"] = self.refine
        if self.walk:
            told |= {f"walk_{key}": value for key, value in asdict(self.walk).items()}
        if self.crfs:
            told |= {f"crf_{key}": value for key, value in asdict(self.crf).items()}
            if self.certainty is not None:
                told["certainty"] = self.certainty
        if self.cell > 1:
            told["cell"] = self.cell
        return told


def label_identity(cams: dict[str, Any], options: LabelOptions) -> dict[str, Any]:
    """Configuration identity of label shards: their options and, as cams.*, that of the CAMs.

    Args:
        cams: identity of the CAM shards, or of those that there would be.
        options: how masks are made.
    """
    kept = {k: v for k, v in cams.items() if k not in ("class_names", "stages")}
    return {
        "format_version": FORMAT_VERSION,
        "class_names": cams["class_names"],
        **options.to_json(),
        **{f"cams.{key}": value for key, value in kept.items()},
    }


def options_of(identity: dict[str, Any]) -> LabelOptions | None:
    """The options in the identity of label shards; None where it holds none or odd ones."""

    def constants(prefix: str) -> dict[str, Any]:
        return {k.removeprefix(prefix): v for k, v in identity.items() if k.startswith(prefix)}

    try:
        walk = constants("walk_")
        return LabelOptions(
            str(identity["stage"]),
            tuple(map(float, identity.get("background", ()))),
            tuple(map(float, identity.get("background_exponent", ()))),
            identity["refine"],
            Pairwise(**constants("crf_")),
            identity.get("certainty"),
            identity.get("cell", 1),
            Walk(**walk) if walk else None,
        )
    except (KeyError, TypeError, ValueError, WsssError):
        return None
