"""The network: logits, losses, position embedding, capture, initialisation, refusals."""

import re
import time
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support import BACKBONE, needs_shared, tiny_config, tiny_model

from wsssfast.errors import WsssError
from wsssfast.models import block
from wsssfast.models.backbone import build_backbone, plain_vits, why_not_plain
from wsssfast.models.classifier import ClassTokenViT, init_from_backbone
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.models.losses import Logits, classifier_loss
from wsssfast.models.scratch import init_from_scratch
from wsssfast.precision import autocast


def test_logits_are_the_token_means_and_the_pooled_cam():
    model = tiny_model()
    images = torch.randn(2, 3, 40, 32)
    class_logits, patch_logits = model(images)[:2]
    captured = model.capture(images)
    assert class_logits.shape == patch_logits.shape == (2, 3)
    assert captured.cam.shape == (2, 3, 5, 4)
    assert torch.allclose(patch_logits, captured.cam.mean((2, 3)), atol=1e-5)
    assert torch.allclose(class_logits, captured.class_logits, atol=1e-5)
    grid = captured.tokens.transpose(1, 2).reshape(2, 48, 5, 4)
    cam = F.conv2d(grid, model.head.weight, model.head.bias, padding=1)
    assert torch.allclose(captured.cam, cam, atol=1e-5)


def test_loss_is_the_negative_log_likelihood_of_both_logits():
    torch.manual_seed(0)
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    targets = (torch.rand(4, 3) > 0.5).float()

    def nll(x):
        p = torch.sigmoid(x)
        return -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()

    assert torch.allclose(classifier_loss(Logits(a, b), targets), nll(a) + nll(b), atol=1e-6)
    assert torch.allclose(classifier_loss(Logits(a), targets), nll(a), atol=1e-6)


def test_layer_ranges_average_the_last_layers():
    model = tiny_model().double()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    per_layer = []
    for last in range(1, 5):
        both = model.capture(images, c2p_layers=last, p2p_layers=last)
        per_layer.append((both.c2p * last, both.p2p * last))
    mixed = model.capture(images, c2p_layers=2, p2p_layers=4)
    assert torch.allclose(mixed.c2p * 2, per_layer[1][0], atol=1e-12)
    assert torch.allclose(mixed.p2p * 4, per_layer[3][1], atol=1e-12)
    more_than_there_are = model.capture(images, c2p_layers=99, p2p_layers=99)
    assert torch.allclose(more_than_there_are.p2p, mixed.p2p, atol=1e-12)


def test_capture_is_the_same_by_reference():
    model = tiny_model()
    images = torch.randn(2, 3, 41, 67)
    fast, slow = model.capture(images), model.double().capture(images.double(), backend="reference")
    for a, b in zip(fast, slow, strict=True):
        assert (a.double() - b).abs().max() <= 1e-4 * max(1.0, float(b.abs().max()))


def test_positions_follow_the_public_rule():
    model = tiny_model()
    assert model.positions(32, 32) is model.pos_embed
    # the trained token count, but not square; and the trained grid with other pixels
    for height, width in ((16, 64), (32, 34)):
        h, w = height // 8, width // 8
        part = model.pos_embed[:, 3:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
        part = F.interpolate(part, scale_factor=((h + 0.1) / 4, (w + 0.1) / 4), mode="bicubic")
        found = model.positions(height, width)
        assert torch.equal(found[:, :3], model.pos_embed[:, :3])
        assert torch.allclose(found[:, 3:], part.flatten(2).transpose(1, 2))
    assert not torch.allclose(model.positions(32, 34), model.pos_embed)


@pytest.mark.parametrize("size", [(8, 8), (8, 203), (101, 9), (224, 230), (500, 375)])
def test_every_image_size_gives_one_token_per_whole_patch(size):
    captured = tiny_model().capture(torch.randn(1, 3, *size))
    assert captured.cam.shape[2:] == (size[0] // 8, size[1] // 8)


def test_initialisation_repeats_the_class_token_and_resizes_positions():
    torch.manual_seed(0)
    vit = timm.create_model(
        "deit_tiny_patch16_224", patch_size=8, embed_dim=48, depth=4, num_heads=3, img_size=48
    )
    torch.nn.init.normal_(vit.cls_token)
    weights = vit.state_dict()
    model = ClassTokenViT(tiny_config())
    head = model.head.weight.clone()
    init_from_backbone(model, weights)
    for c in range(3):
        assert torch.equal(model.cls_token[0, c], weights["cls_token"][0, 0])
        assert torch.equal(model.pos_embed[0, c], weights["pos_embed"][0, 0])
    part = weights["pos_embed"][:, 1:].reshape(1, 6, 6, 48).permute(0, 3, 1, 2)
    part = F.interpolate(part, size=(4, 4), mode="bicubic", align_corners=False)
    assert torch.allclose(model.pos_embed[:, 3:], part.flatten(2).transpose(1, 2))
    assert torch.equal(model.blocks[3].mlp.fc2.weight, weights["blocks.3.mlp.fc2.weight"])
    assert torch.equal(model.head.weight, head)


def test_initialisation_refuses_another_architecture():
    vit = timm.create_model(
        "deit_tiny_patch16_224", patch_size=8, embed_dim=48, depth=5, num_heads=3, img_size=32
    )
    with pytest.raises(WsssError, match=r"differ at 'blocks\.4"):
        init_from_backbone(ClassTokenViT(tiny_config()), vit.state_dict())


@pytest.mark.parametrize(
    ("arch", "given", "words"),
    [
        ("deit_small_patch16_224", "deit_tiny_patch16_224",
         "looks like deit_tiny_patch16_224 (width 192): give --arch deit_tiny_patch16_224."),
        ("vit_base_patch16_224", "deit_small_patch16_224", "give --arch vit_small_patch16_224."),
        ("deit_tiny_patch16_224", "vit_medium_patch16_clip_224", "that belongs to this"),
        ("deit_small_patch16_224", "vit_small_patch32_224", "that belongs to this"),
        ("vit_medium_patch16_clip_224", "deit_tiny_patch16_224", "that belongs to this"),
    ],
)  # fmt: skip
def test_weights_of_another_size_are_named(arch, given, words):
    with torch.device("meta"):
        weights = timm.create_model(given, num_classes=0).state_dict()
        model = ClassTokenViT(ClassifierConfig(("a",), arch))
        with pytest.raises(WsssError) as caught:
            init_from_backbone(model, weights)
    assert words in caught.value.remedy and "\n" not in str(caught.value)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A hub that cannot be reached, and its cache's folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    yield tmp_path
    assert not constants.HF_HUB_OFFLINE


def test_without_a_network_there_is_one_line_and_no_waiting(no_hub, capfd):
    from wsssfast.models.backbone import backbone_weights

    begin = time.monotonic()
    with pytest.raises(WsssError, match=r"weights of test_vit: no network. Give a local file"):
        backbone_weights("test_vit", "timm")
    assert time.monotonic() - begin < 20
    assert capfd.readouterr() == ("", "")


def test_without_a_network_cached_weights_are_there_still(no_hub):
    from wsssfast.models.backbone import backbone_weights

    vit = timm.create_model("test_vit")
    folder = no_hub / f"models--{vit.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(vit.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    found = backbone_weights("test_vit", "timm")
    assert torch.equal(found["cls_token"], vit.cls_token)


@needs_shared
def test_initialisation_from_the_real_backbone():
    from wsssfast.models.backbone import backbone_weights

    model = ClassTokenViT(ClassifierConfig(("a", "b"), "deit_tiny_patch16_224"))
    weights = backbone_weights("deit_tiny_patch16_224", str(BACKBONE))
    init_from_backbone(model, weights)
    assert torch.equal(model.pos_embed[0, 2:], weights["pos_embed"][0, 1:])


@pytest.mark.parametrize(
    "arch",
    ["deit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch16_224",
     "vit_base_patch32_clip_224", "vit_base_patch8_224", "vit_small_patch14_reg4_dinov2",
     "vit_small_patch16_dinov3", "vit_huge_plus_patch16_dinov3", "eva02_small_patch14_224",
     "vit_base_patch16_rope_reg1_gap_256"],
)  # fmt: skip
def test_plain_vits_serve(arch):
    with torch.device("meta"):
        assert not why_not_plain(timm.create_model(arch, num_classes=0))


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("deit_tiny_distilled_patch16_224", "VisionTransformerDistilled"),
        ("vit_so150m_patch16_reg4_gap_256", "positions of its registers"),
        ("eva02_base_patch14_224", "projected apart"),
        ("vit_small_patch16_rope_mixed_224", "differ from layer to layer"),
        ("vit_small_patch16_rope_224", "AttentionRope"),
        ("vit_small_r26_s32_224", "HybridEmbed"),
        ("resnet18", "found 'resnet18', a network of another kind"),
        ("deit_tiny_patch16_2240", "Unknown model"),
    ],
)
def test_others_are_refused_in_one_line(arch, words):
    with pytest.raises(WsssError) as caught, torch.device("meta"):
        build_backbone(arch, {}, 224)
    assert words in caught.value.message
    assert "\n" not in str(caught.value)
    assert "__init__" not in str(caught.value)


def test_close_names_are_told_for_a_misspelt_one():
    with pytest.raises(WsssError) as caught:
        build_backbone("vit_smal_patch16_224", {}, 224)
    assert caught.value.remedy.startswith("Close to it are vit_small_patch16_224, ")


@pytest.mark.parametrize(
    ("arch", "mean"),
    [("deit_tiny_patch16_224", 0.485), ("vit_tiny_patch16_224.augreg_in21k", 0.5),
     ("vit_large_patch16_dinov3.sat493m", 0.43)],
)  # fmt: skip
def test_preprocessing_is_the_backbones_own(arch, mean):
    config = ClassifierConfig.for_backbone(arch, ("a",), 224, depth=1)
    assert config.mean[0] == mean and "." not in config.arch
    assert config.arch_options == {"depth": 1}


def test_an_unknown_tag_is_refused():
    with pytest.raises(WsssError, match="no_such_tag"):
        ClassifierConfig.for_backbone("vit_tiny_patch16_224.no_such_tag", ("a",), 224)


@pytest.mark.slow
def test_the_documented_list_is_that_of_the_plain_vits():
    listed = (Path(__file__).resolve().parents[2] / "docs" / "backbones.md").read_text()
    found = re.findall(r"^- `(\w+)`$", listed, re.MULTILINE)
    known = plain_vits()
    assert set(known) <= set(found) or set(found) <= set(known)  # timm's versions differ
    assert len(set(known) & set(found)) > 40


def test_a_start_from_scratch_attends_to_similar_patches():
    torch.manual_seed(0)
    model = ClassTokenViT(tiny_config()).eval()
    images = torch.randn(1, 3, 32, 32).repeat_interleave(16, -1)[..., :32]
    diffuse = model.capture(images).p2p
    init_from_scratch(model)
    block = model.blocks[0].attn
    query, key, value = block.qkv.weight.detach().split(48)
    for head in range(3):
        rows = slice(16 * head, 16 * head + 16)
        product = query[rows].T @ key[rows]
        assert product.diagonal().mean() > 3 * product.abs().mean()
    assert (block.proj.weight.detach() @ value).diagonal().mean() < -0.2
    assert model.capture(images).p2p.std() > 3 * diffuse.std()


def test_training_in_half_precision_on_a_cpu_is_as_exact_as_pytorchs_attention(monkeypatch):
    torch.manual_seed(0)
    images, targets = torch.randn(2, 3, 40, 32), torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    model = tiny_model().train()

    def gradients(precision: str, most: int) -> torch.Tensor:
        monkeypatch.setattr(block, "_MOST_MAPS", most)
        with autocast("cpu", precision):
            loss = classifier_loss(model(images), targets)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    exact, fused, whole = gradients("fp32", 0), gradients("bf16", 0), gradients("bf16", 10**9)
    assert torch.equal(gradients("fp32", 10**9), exact)  # whole maps are for half precision only
    assert not torch.equal(whole, fused)
    wrong = [(found - exact).norm() / exact.norm() for found in (fused, whole)]
    assert wrong[1] < max(0.02, 1.5 * wrong[0])
