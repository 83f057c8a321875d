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


def test_mistakes_are_told():
    with pytest.raises(WsssError, match="ResNet"):
        AttentionHook(timm.create_model("resnet10t"))
    with pytest.raises(WsssError, match=r"class token, found one without. Give c2p_layers=0"):
        AttentionHook(network("vit_base_patch16_gap_224"))
    vit = network("vit_tiny_patch16_224")
    with pytest.raises(WsssError, match="found none"), AttentionHook(vit) as hook:
        hook.attention()
    with pytest.raises(WsssError, match="mask"), AttentionHook(vit):
        vit.forward_features(IMAGES, attn_mask=torch.ones(17, 17))
    assert "forward" not in vars(vit.blocks[0].attn)
