"""The paper's Figs. 1 and 3: attention before and after modulation, and the related patches."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wsssfast import kernels
from wsssfast.cam_options import CamOptions
from wsssfast.compute import captures, prepare
from wsssfast.errors import WsssError
from wsssfast.kernels import reference
from wsssfast.memory import require_memory
from wsssfast.models.classifier import ClassTokenViT

Map = NDArray[np.float32]


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of one image for one class, all on the patch grid [h, w].

    Attributes:
        before: float32, c2p of the class.
        after: float32, c2p + alpha * r (Eq. 4).
        point: (row, column) of the patch with the largest Final-CAM of the class.
        related: bool, the patches U(i) of that patch.
        row: float32, the point's p2p attention to every patch.
    """

    before: Map
    after: Map
    point: tuple[int, int]
    related: NDArray[np.bool_]
    row: Map


def stored_options(identity: dict[str, Any]) -> CamOptions:
    """The options that shards were exported with.

    Raises:
        WsssError: values that are no such options.
    """
    known = {field.name for field in fields(CamOptions)}
    found: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in identity.items()
        if key in known
    }
    try:
        return CamOptions(**found)
    except TypeError as error:
        raise WsssError(f"Expected the options of an export in the shards: {error}.") from error


def attention_maps(
    model: ClassTokenViT, image: Image.Image, label: int, options: CamOptions
) -> AttentionMaps:
    """One float32 pass over the image as it is: scale 1, not flipped.

    Args:
        model: in evaluation mode.
        image: RGB.
        label: 0-based class.
        options: ratio, alpha and the rest of the method.

    Raises:
        BadFile: an image too large for this machine's memory.
    """
    plain = replace(options, scales=(1.0,), flip=False, precision="fp32")
    require_memory(model, image.size, plain)
    pixels = prepare(image, plain, model.patch_size)
    captured, _ = next(captures(model, [pixels], [(label,)], plain))
    grid = captured.cam.shape[-2:]
    cam, c2p = captured.cam.flatten(2), captured.c2p
    similarity, self_too = captured.similarity(options.related_by), options.include_self
    related = kernels.related_patches(similarity, options.ratio, include_self=self_too)
    mean = kernels.related_mean(c2p, similarity, options.ratio, include_self=self_too)
    after = reference.modulate(c2p, mean, options.alpha)
    final = kernels.propagate(
        reference.couple(cam, after, options.fuse), captured.p2p, options.propagation
    )
    point = int(final[0, 0].argmax())

    def on_grid(flat: torch.Tensor) -> NDArray[Any]:
        return flat.reshape(grid).cpu().numpy()

    return AttentionMaps(
        before=on_grid(c2p[0, 0]),
        after=on_grid(after[0, 0]),
        point=(point // grid[1], point % grid[1]),
        related=on_grid(related[0, point]),
        row=on_grid(captured.p2p[0, point]),
    )
