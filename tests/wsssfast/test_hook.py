"""The hook's attention is the network's own, and the network's result stays what it was."""

import pytest
import timm
import torch

from wsssfast.errors import WsssError
from wsssfast.hook import AttentionHook

SMALL = {"patch_size": 8, "depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 0}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(arch):
    torch.manual_seed(0)
    vit = timm.create_model(arch, img_size=32, **SMALL).double().eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vit


def attention_of(vit, images):
    """Per layer [B, M, T, T], out of timm's own queries and keys."""
    seen = []

    def keep(query, key, value, **_):
        probabilities = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
        seen.append(probabilities)
        return probabilities @ value

    whole = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = keep
    try:
        vit.forward_features(images)
    finally:
        torch.nn.functional.scaled_dot_product_attention = whole
    return torch.stack(seen).mean(2)


@pytest.mark.parametrize(
    ("arch", "rows"),
    [
        ("vit_tiny_patch16_224", 1),
        ("vit_small_patch14_reg4_dinov2", 1),
        ("vit_small_patch16_dinov3", 1),
        ("vit_betwixt_patch16_reg4_gap_256", 0),
        ("vit_base_patch16_gap_224", 0),
        ("deit_tiny_distilled_patch16_224", 1),
    ],
)
@torch.no_grad()
def test_it_sees_the_networks_attention(arch, rows):
    vit = network(arch)
    wanted, maps = vit.forward_features(IMAGES), attention_of(vit, IMAGES)
    prefix = vit.num_prefix_tokens
    with AttentionHook(vit, c2p_layers=rows, p2p_layers=2) as hook:
        for _ in range(2):  # each pass begins anew
            found = vit.forward_features(IMAGES)
            c2p, p2p = hook.attention()
    assert torch.allclose(found, wanted, atol=1e-9)
    assert c2p.shape == (2, rows, 16)
    assert torch.allclose(c2p, maps[-1, :, :rows, prefix:], atol=1e-9)
    assert torch.allclose(p2p, maps[-2:, :, prefix:, prefix:].mean(0), atol=1e-9)
    assert "forward" not in vars(vit.blocks[0].attn)
    assert torch.equal(vit.forward_features(IMAGES), wanted)


class Derived(timm.models.vision_transformer.VisionTransformer):
    """A network of one's own: another way in, and tokens that are dropped on the way."""

    dropped = 0

    def forward_features(self, x):
        x = super()._pos_embed(self.patch_embed(x.flip(-1)))
        for block in self.blocks:
            x = block(x)[:, : x.shape[1] - self.dropped]
        return self.norm(x)


def test_networks_derived_from_timms_are_taken():
    vit = network("vit_tiny_patch16_224")
    vit.__class__ = Derived
    with torch.no_grad():
        wanted, maps = vit.forward_features(IMAGES), attention_of(vit, IMAGES)
    with AttentionHook(vit, 1, 2) as hook:
        found = vit.forward_features(IMAGES)
    c2p, p2p = hook.attention()
    assert torch.allclose(found, wanted, atol=1e-9)
    assert torch.allclose(c2p, maps[-1, :, :1, 1:], atol=1e-9)
    assert torch.allclose(p2p, maps[-2:, :, 1:, 1:].mean(0), atol=1e-9)
    vit.dropped = 1
    with (
        pytest.raises(
            WsssError, match=r"same tokens in all layers, found \[2, 16, 48\] in layer 2"
        ),
        AttentionHook(vit),
    ):
        vit.forward_features(IMAGES)


def test_other_networks_are_refused():
    with pytest.raises(WsssError, match=r"found ResNet. Call kernels.AttentionCapture"):
        AttentionHook(timm.create_model("resnet10t"))
    vit = network("vit_tiny_patch16_224")
    with pytest.raises(WsssError, match=r"OptimizedModule. Hook the bare network .* \._orig_mod"):
        AttentionHook(torch.compile(vit))
    with pytest.raises(WsssError, match=r"DataParallel. Hook the bare network .* \.module"):
        AttentionHook(torch.nn.DataParallel(vit))
    with pytest.raises(WsssError, match=r"class token, found one without. Give c2p_layers=0"):
        AttentionHook(network("vit_base_patch16_gap_224"))
    vit.cls_token = torch.nn.Parameter(torch.zeros(1, 20, 48))
    with pytest.raises(WsssError, match="one class token at most, found 20"):
        AttentionHook(vit)
    vit = network("vit_tiny_patch16_224")
    vit.blocks[1].attn = timm.layers.AttentionRope(48, 3)
    with pytest.raises(WsssError, match="attention of the type AttentionRope"):
        AttentionHook(vit)
    vit.blocks[1].attn = timm.layers.Attention(48, 3)
    vit.blocks[1].attn.qkv = torch.nn.Linear(48, 72)
    with pytest.raises(WsssError, match="heads that are together wider or narrower"):
        AttentionHook(vit)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backend": "x"}, "Expected backend auto, triton, eager, reference, found 'x'"),
        ({"c2p_layers": 2.5}, "Expected c2p_layers as a whole number from 0 up, found 2.5"),
        ({"c2p_layers": -1}, "from 0 up, found -1"),
        ({"p2p_layers": 0}, "Expected p2p_layers as a whole number from 1 up, found 0"),
        ({"p2p_layers": "2"}, "from 1 up, found '2'"),
    ],
)
def test_options_are_checked_at_once(options, told):
    with pytest.raises(WsssError, match=told):
        AttentionHook(network("vit_tiny_patch16_224"), **options)


def test_a_pass_goes_through_all_layers():
    vit = network("vit_tiny_patch16_224")
    with pytest.raises(WsssError, match="found none"), AttentionHook(vit) as hook:
        hook.attention()
    with AttentionHook(vit, 1, 1) as hook:
        vit.forward_intermediates(IMAGES, indices=[1], stop_early=True)
        with pytest.raises(WsssError, match="through all 3 layers, found one through the first 2"):
            hook.attention()
        with pytest.raises(WsssError, match="in order, found layer 2 after the first 2"):
            vit.blocks[1](torch.zeros(2, 17, 48).double())
        vit.forward_intermediates(IMAGES, indices=[2], stop_early=True)
        hook.attention()
    with pytest.raises(WsssError, match="mask"), AttentionHook(vit):
        vit.forward_features(IMAGES, attn_mask=torch.ones(17, 17))
    assert "forward" not in vars(vit.blocks[0].attn)


def test_gradients_are_off_inside_and_back_behind():
    vit = network("vit_tiny_patch16_224")
    with AttentionHook(vit) as hook:
        assert not vit.forward_features(IMAGES).requires_grad
    assert torch.is_grad_enabled() and vit.forward_features(IMAGES).requires_grad
    assert not hook.attention().p2p.requires_grad
    with (
        pytest.raises(WsssError, match=r"without gradients, .* Put it under torch.no_grad"),
        AttentionHook(vit),
        torch.enable_grad(),
    ):
        vit.forward_features(IMAGES)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        with AttentionHook(vit):
            vit.forward_features(IMAGES)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("rate", ["attn_drop_rate", "proj_drop_rate"])
def test_dropout_of_attention_is_refused(rate):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, **SMALL, **{rate: 0.5})
    with pytest.raises(WsssError, match=r"dropout in .* Call its .eval"), AttentionHook(vit):
        vit.forward_features(IMAGES.float())
    with AttentionHook(vit.eval()) as hook:
        vit.forward_features(IMAGES.float())
    hook.attention()


def test_one_hook_at_a_time():
    vit = network("vit_tiny_patch16_224")
    with AttentionHook(vit) as hook:
        for other in (hook, AttentionHook(vit)):
            with pytest.raises(WsssError, match="without a hook, found one that has another on"):
                other.__enter__()
        vit.forward_features(IMAGES)
        assert not torch.is_grad_enabled()
    assert hook.attention().p2p.shape == (2, 16, 16)
    assert torch.is_grad_enabled() and "forward" not in vars(vit.blocks[0].attn)
