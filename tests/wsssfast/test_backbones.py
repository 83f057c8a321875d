"""Backbones with registers and rotary positions, against timm's own forward pass."""

import pytest
import timm
import torch
from support import random_image

from wsssfast.cam_options import CamOptions
from wsssfast.compute import captures, prepare
from wsssfast.errors import WsssError
from wsssfast.models.block import attending_block
from wsssfast.models.checkpoint import load_model, save_model
from wsssfast.models.classifier import ClassTokenViT, init_from_backbone
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.models.losses import classifier_loss
from wsssfast.models.scratch import init_from_scratch
from wsssfast.models.stochastic_depth import install_drop_path

SMALL = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
DINOV2, DINOV3 = "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"
OTHERS = ["vit_small_patch16_dinov3_qkvb", "eva02_small_patch14_224", "vit_small_patch16_224"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NO_CLASS_TOKEN = "vit_base_patch16_rope_reg1_gap_256"
IMAGES = torch.randn(2, 3, 40, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def timms(arch, image_size=32):
    """Timm's network, small and of random weights, none of them zero."""
    sizes = {} if arch == DINOV2 else {"dynamic_img_size": True}
    torch.manual_seed(0)
    vit = timm.create_model(arch, num_classes=0, img_size=image_size, **sizes, **SMALL)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vit.double().eval()


def ours(arch, names=("a",), **changes):
    """The classifier that starts from timm's network."""
    config = ClassifierConfig(tuple(names), arch, SMALL, 32, **changes)
    model = ClassTokenViT(config).double().eval()
    init_from_backbone(model, timms(arch).state_dict())
    return model


@pytest.mark.parametrize("arch", [DINOV2, DINOV3, *OTHERS])
def test_one_class_token_is_timms_network(arch):
    images = IMAGES[:, :, :32]
    model, vit = ours(arch, final_norm=True), timms(arch)
    wanted = vit.forward_features(images)[:, vit.num_prefix_tokens :]
    assert torch.allclose(model.capture(images).tokens, wanted, atol=1e-9)
    assert torch.allclose(model._head_tokens(model.encode(images)), wanted, atol=1e-9)
    assert model.prefix == vit.num_prefix_tokens


def test_rotary_positions_follow_the_image():
    model, vit = ours(DINOV3, final_norm=True), timms(DINOV3)
    wanted = vit.forward_features(IMAGES)[:, vit.num_prefix_tokens :]
    assert model.positions(40, 32) is None
    assert torch.allclose(model.capture(IMAGES).tokens, wanted, atol=1e-9)
    assert not torch.allclose(wanted[:, :16], vit.forward_features(IMAGES[:, :, :32])[:, -16:])


@pytest.mark.parametrize("backend", ["eager", "reference", "triton"])
@pytest.mark.parametrize("arch", [DINOV2, DINOV3, NO_CLASS_TOKEN, *OTHERS])
def test_capture_leaves_registers_out(arch, backend):
    """Triton's, in its interpreter where there is no GPU, at float32 and to 1e-4."""
    model = ours(arch, names=("a", "b", "c"))
    with torch.no_grad():  # the class tokens start alike
        model.cls_token.add_(torch.randn_like(model.cls_token))
        x, rope, maps = model._embed(IMAGES), model._rotary(IMAGES), []
        for block in model.blocks:
            x, probabilities = attending_block(block, x, rope)
            maps.append(probabilities.mean(1))
    mean, prefix = torch.stack(maps).mean(0), model.prefix
    wanted = (x[:, :3].mean(-1), mean[:, :3, prefix:], mean[:, prefix:, prefix:], x[:, prefix:])
    kind = (DEVICE, torch.float32) if backend == "triton" else ("cpu", torch.float64)
    model, images = model.to(*kind), IMAGES.to(*kind)
    found = model.capture(images, 2, 2, backend)
    error = 1e-4 if backend == "triton" else 1e-9
    captured = (found.class_logits, found.c2p, found.p2p, found.tokens)
    for one, other in zip(captured, wanted, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one.cpu().double(), other, atol=error)
    after = model.tokens_after(images, [2])[0]
    assert torch.allclose(after, found.tokens, atol=error)


@pytest.mark.parametrize("arch", [DINOV2, DINOV3, NO_CLASS_TOKEN])
def test_all_of_it_is_trained(arch):
    model = ours(arch, names=("a", "b")).train()
    install_drop_path(model.blocks, 2)
    targets = torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64)
    classifier_loss(model(IMAGES), targets).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert not without
    assert "reg_token" in dict(model.named_parameters())


@pytest.mark.parametrize("arch", [DINOV2, DINOV3])
def test_checkpoints_come_back(arch, tmp_path):
    model = ours(arch, names=("a", "b"), one_token=True).float()
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    images = IMAGES.float()
    assert torch.equal(again.capture(images).p2p, model.capture(images).p2p)


def test_learned_fusion_on_rotary_positions():
    """The attention that WeakTr's training sees is the one that is captured."""
    model = ours(DINOV3, names=("a", "b"), adaptive_fusion=True)
    images = IMAGES[:, :, :32]
    evaluated = model(images)
    trained = model.train()(images)
    assert torch.allclose(trained.classes, evaluated.classes, atol=1e-9)
    assert trained.fine is not None


def test_without_weights_it_starts_too():
    model = ClassTokenViT(ClassifierConfig(("a", "b"), DINOV3, SMALL, 32))
    init_from_scratch(model)
    assert model(IMAGES.float()).classes.shape == (2, 2)


def test_class_tokens_start_at_random_where_the_weights_have_none():
    model = ours(NO_CLASS_TOKEN, names=("a", "b"))
    assert model.cls_token.std() > 0.01
    assert not torch.equal(model.cls_token[:, 0], model.cls_token[:, 1])


def test_weights_of_another_backbone_are_refused():
    model = ClassTokenViT(ClassifierConfig(("a",), DINOV3, SMALL, 32))
    with pytest.raises(WsssError, match="differ at"):
        init_from_backbone(model, timms(DINOV2).state_dict())


def test_a_batch_of_images_goes_through_the_exports_step():
    model = ours(DINOV3, names=("a", "b")).float()
    options = CamOptions(scales=(1.0, 1.5))
    pixels = [prepare(random_image(40, 32), options, 8)]
    found = list(captures(model, pixels, [(0, 1)], options))
    sizes = [(part.p2p.shape, labels) for part, labels in found]
    assert sizes == [((2, 20, 20), ((0, 1),)), ((2, 42, 42), ((0, 1),))]
