"""The dense CRF by pydensecrf, which the field uses: what the others are compared with."""

import numpy as np
import torch
from torch import Tensor

from wsssfast.kernels.crf import Pairwise


def mean_field(image: Tensor, unary: Tensor, pairwise: Pairwise) -> Tensor:
    """Marginals float32 [G, K, H, W] of one image uint8 [H, W, 3], one setting after the other."""
    from pydensecrf.densecrf import DenseCRF2D

    height, width = image.shape[:2]
    pixels = np.array(image.numpy(), order="C")  # it writes to neither, but asks to be able to
    found = torch.empty_like(unary, memory_format=torch.contiguous_format)
    for one, out in zip(unary, found, strict=True):
        crf = DenseCRF2D(width, height, len(one))
        crf.setUnaryEnergy(np.array(one.reshape(len(one), -1).numpy(), order="C"))
        if pairwise.gaussian_compat > 0:
            crf.addPairwiseGaussian(sxy=pairwise.gaussian_sxy, compat=pairwise.gaussian_compat)
        if pairwise.bilateral_compat > 0:
            crf.addPairwiseBilateral(
                sxy=pairwise.bilateral_sxy, srgb=pairwise.bilateral_srgb, rgbim=pixels,
                compat=pairwise.bilateral_compat,
            )  # fmt: skip
        marginals = np.array(crf.inference(pairwise.iterations), np.float32)
        out.copy_(torch.from_numpy(marginals).reshape(one.shape))
    return found
