"""CAMs from MCTformer's public checkpoint layout against a transcription of its procedure.

The transcription below knows only the state dict and `method.md` §§1-5: it stacks all attention,
upsamples every map to full size, flips back there, sums, and normalises.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support import CLASSIFIER, SHARED, needs_shared, random_image

from wsssfast.cam_options import CamOptions
from wsssfast.models.checkpoint import load_model
from wsssfast.notebook import cams

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def public_state(width=128, depth=12, classes=5, patch=16, side=4, v1=False, seed=0):
    """A random state dict in MCTformer's layout, with attention that is far from uniform."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, std=0.02):
        return torch.randn(*shape, generator=g) * std

    state = {
        "cls_token": normal(1, classes, width, std=1.0),
        "pos_embed": normal(1, classes + side * side, width, std=0.5),
        "patch_embed.proj.weight": normal(width, 3, patch, patch, std=0.05),
        "patch_embed.proj.bias": normal(width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    if v1:
        state |= {"head.weight": normal(classes, width), "head.bias": torch.zeros(classes)}
    else:
        state |= {"head.weight": normal(classes, width, 3, 3), "head.bias": normal(classes)}
    for n in range(depth):
        block = f"blocks.{n}."
        for norm in ("norm1", "norm2"):
            state[f"{block}{norm}.weight"] = 1 + normal(width)
            state[f"{block}{norm}.bias"] = normal(width)
        for name, out, inner, std in (
            ("attn.qkv", 3 * width, width, 0.15), ("attn.proj", width, width, 0.05),
            ("mlp.fc1", 4 * width, width, 0.05), ("mlp.fc2", width, 4 * width, 0.05),
        ):  # fmt: skip
            state[f"{block}{name}.weight"] = normal(out, inner, std=std)
            state[f"{block}{name}.bias"] = normal(out)
    return state


def transcription(state, image, labels, scales, stage="cam", dtype=torch.float64):
    """Maps of `labels` [K, H, W] as MCTformer's scripts compute them."""
    p = {k: v.to(dtype) for k, v in state.items()}
    classes, width = p["cls_token"].shape[1:]
    patch = p["patch_embed.proj.weight"].shape[-1]
    depth = max(int(k.split(".")[1]) for k in p if k.startswith("blocks.")) + 1
    heads = width // 64
    n0 = p["pos_embed"].shape[1] - classes
    side = int(n0**0.5)

    def norm(x, name):
        return F.layer_norm(x, (width,), p[name + ".weight"], p[name + ".bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, p[name + ".weight"], p[name + ".bias"])

    def network(x):
        height, wide = x.shape[2:]
        x = F.conv2d(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=patch)
        h, w = height // patch, wide // patch
        x = x.flatten(2).transpose(1, 2)
        if h * w == n0 and height == wide:
            positions = p["pos_embed"]
        else:
            part = p["pos_embed"][:, classes:].reshape(1, side, side, width).permute(0, 3, 1, 2)
            part = F.interpolate(
                part, scale_factor=((h + 0.1) / side, (w + 0.1) / side), mode="bicubic"
            )
            assert part.shape[2:] == (h, w)
            part = part.permute(0, 2, 3, 1).reshape(1, h * w, width)
            positions = torch.cat([p["pos_embed"][:, :classes], part], 1)
        x = torch.cat([p["cls_token"], x], 1) + positions
        attentions = []
        for n in range(depth):
            b = f"blocks.{n}."
            t = x.shape[1]
            qkv = linear(norm(x, b + "norm1"), b + "attn.qkv")
            q, k, v = qkv.reshape(1, t, 3, heads, 64).permute(2, 0, 3, 1, 4)
            a = torch.softmax(q @ k.transpose(-2, -1) * 64**-0.5, -1)
            attentions.append(a)
            x = x + linear((a @ v).transpose(1, 2).reshape(1, t, width), b + "attn.proj")
            x = x + linear(F.gelu(linear(norm(x, b + "norm2"), b + "mlp.fc1")), b + "mlp.fc2")
        attention = torch.stack(attentions).mean(2)  # layers, 1, T, T
        c2p = attention[-3:].sum(0)[:, :classes, classes:].reshape(1, classes, h, w)
        p2p = attention[:, :, classes:, classes:].sum(0)
        if p["head.weight"].ndim == 4:
            grid = x[:, classes:].transpose(1, 2).reshape(1, width, h, w)
            c2p = c2p * F.relu(F.conv2d(grid, p["head.weight"], p["head.bias"], padding=1))
        return (p2p.unsqueeze(1) @ c2p.reshape(1, classes, h * w, 1)).reshape(1, classes, h, w)

    total = 0
    for scale in scales:
        size = tuple(round(s * scale) for s in image.size)
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)) / 255
        x = torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1)[None].to(dtype)
        for flip in (False, True):
            maps = network(x.flip(-1) if flip else x)
            full = F.interpolate(
                maps, (image.size[1], image.size[0]), mode="bilinear", align_corners=False
            )[0]
            total = total + (full.flip(-1) if flip else full)
    chosen = total[list(labels)]
    low, high = chosen.amin((1, 2), keepdim=True), chosen.amax((1, 2), keepdim=True)
    return ((chosen - low) / (high - low + 1e-8)).numpy()


SIZES = [
    (64, 64),  # the trained size
    (128, 32),  # the trained number of tokens, not square
    (64, 70),  # the trained grid, but the pixels are not square
    (75, 53),  # not divisible
    (110, 97),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.75, 1.25)])
def test_public_layout_gives_the_public_cams(tmp_path, size, v1, scales):
    state = public_state(v1=v1)
    torch.save({"model": state}, tmp_path / "public.pth")
    model = load_model(tmp_path / "public.pth")
    assert (model.head is None) == v1
    image = random_image(*size)
    options = CamOptions(stages=("original+c2p+p2p",), scales=scales)
    found = cams(model, [image], [[0, 3]], options)[0]
    wanted = transcription(state, image, [0, 3], scales)
    assert found.shape == (2, size[1], size[0])
    assert wanted.max() > 0.99
    assert np.abs(found - wanted).max() <= 1e-4


def test_alpha_zero_gives_the_same_cams(tmp_path):
    state = public_state()
    torch.save(state, tmp_path / "bare.pth")  # without the outer {"model": ...}
    model = load_model(tmp_path / "bare.pth")
    image = random_image(75, 53)
    found = cams(model, [image], [[1]], CamOptions(alpha=0.0))[0]
    assert np.abs(found - transcription(state, image, [1], (1.0,))).max() <= 1e-4


@needs_shared
@pytest.mark.parametrize("name", ["2007_000033", "2007_000061", "2008_000073"])
def test_the_trained_classifier_gives_the_public_cams(name):
    state = torch.load(CLASSIFIER, weights_only=True)["model"]
    image = Image.open(SHARED / "data/voc/JPEGImages" / f"{name}.jpg").convert("RGB")
    options = CamOptions(stages=("original+c2p+p2p",), scales=(1.0, 0.75, 1.25))
    found = cams(load_model(CLASSIFIER), [image], [[3, 7, 14]], options)[0]
    wanted = transcription(state, image, [3, 7, 14], (1.0, 0.75, 1.25))
    assert np.abs(found - wanted).max() <= 1e-4
