"""Methods beside the paper's: their networks, losses and recipes, against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import random_image, tiny_config, tiny_model

from wsssfast import kernels
from wsssfast.cam_options import CamOptions
from wsssfast.compute import captures, prepare, stage_grids
from wsssfast.errors import WsssError
from wsssfast.models.block import attending_block, captured_block
from wsssfast.models.checkpoint import load_model, save_model, weights_hash
from wsssfast.models.classifier import ClassTokenViT, init_from_backbone
from wsssfast.models.classifier_config import ClassifierConfig
from wsssfast.models.fusion import AttentionFusion, fused_attention
from wsssfast.models.losses import Logits, class_contrast, classifier_loss, ranked_mean
from wsssfast.models.segmenter import Segmenter, SegmenterConfig
from wsssfast.training.starts import from_classifier

IMAGES = torch.randn(2, 3, 40, 32, generator=torch.Generator().manual_seed(0))


def attention_of(model, images):
    """Per layer [B, M, T, T], and the tokens after the last."""
    x, maps = model._embed(images), []
    for block in model.blocks:
        x, probabilities = attending_block(block, x)
        maps.append(probabilities)
    return maps, x


class TestLosses:
    def test_ranked_pooling_weights_by_rank(self):
        cam = torch.randn(2, 3, 4, 5, dtype=torch.float64)
        wanted = torch.zeros(2, 3, dtype=torch.float64)
        for b in range(2):
            for c in range(3):
                values = sorted(cam[b, c].flatten().tolist(), reverse=True)
                weights = [0.9**n for n in range(20)]
                total = math.fsum(w * v for w, v in zip(weights, values, strict=True))
                wanted[b, c] = total / math.fsum(weights)
        assert torch.allclose(ranked_mean(cam, 0.9), wanted, atol=1e-6)
        assert torch.equal(ranked_mean(cam, 1.0), cam.mean((2, 3)))

    def test_the_contrast_is_that_of_the_present_classes(self):
        tokens = torch.randn(2, 3, 4, 8)
        targets = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
        total = 0.0
        for layer in tokens:
            for image, present in zip(layer, targets, strict=True):
                unit = image / image.norm(dim=1, keepdim=True)
                found = [-F.log_softmax(unit[c] @ unit.T, 0)[c].item() for c in range(4)]
                chosen = [found[c] for c in range(4) if present[c]]
                total += sum(chosen) / len(chosen) if chosen else 0
        assert class_contrast(tokens, targets).item() == pytest.approx(total / 6, abs=1e-5)
        logits = Logits(torch.zeros(3, 4), tokens=tokens)
        more = classifier_loss(logits, targets, 0.5) - classifier_loss(logits, targets)
        assert more.item() == pytest.approx(total / 12, abs=1e-5)


class TestOneToken:
    """TS-CAM: one class token, whose attention is multiplied into every class's CAM."""

    def test_logits_and_maps(self):
        model = tiny_model(one_token=True, final_norm=True)
        assert model.cls_token.shape[1] == 1
        logits = model(IMAGES)
        captured = model.capture(IMAGES, c2p_layers=4)
        assert logits.patches is None
        assert torch.allclose(logits.classes, captured.cam.mean((2, 3)), atol=1e-5)
        assert torch.allclose(captured.class_logits, logits.classes, atol=1e-5)
        maps, x = attention_of(model, IMAGES)
        cam = model.head(model.norm(x[:, 1:]).transpose(1, 2).reshape(2, -1, 5, 4))
        attention = torch.stack(maps).mean((0, 2))[:, :1, 1:]
        found = kernels.refine(
            captured.cam.flatten(2), captured.c2p, captured.p2p, ["original+c2p"]
        )["original+c2p"]
        assert torch.allclose(found, cam.flatten(2).relu() * attention, atol=1e-5)

    def test_it_predicts_the_labels_and_exports(self):
        model = tiny_model(one_token=True)
        options = CamOptions(stages=("original+c2p", "final"), predict_above=0.0, flip=False)
        (grids,) = stage_grids(model, [random_image(40, 32)], [()], options)
        assert grids["final"][0].shape == (3, 4, 5)
        pixels = [prepare(random_image(40, 32), options, 16)]
        _, known = next(captures(model, pixels, [(2, 0)], CamOptions(flip=False)))
        assert known == ((2, 0),)

    def test_the_last_norm_comes_from_the_backbone(self):
        config = tiny_config(one_token=True, final_norm=True)
        torch.manual_seed(1)
        weights = dict(ClassTokenViT(tiny_config(classes=("x",), final_norm=True)).state_dict())
        weights["norm.weight"] = torch.rand(48)
        model = ClassTokenViT(config)
        init_from_backbone(model, weights)
        assert torch.equal(model.norm.weight, weights["norm.weight"])
        without = ClassTokenViT(tiny_config(one_token=True))
        init_from_backbone(without, weights)
        assert without.norm is None


class TestPlus:
    """MCTformer+: ranked pooling, class tokens of all layers, positions resized apart."""

    def test_positions_are_resized_without_the_tenth(self):
        plus = tiny_model(split_positions=True)
        patches = plus.pos_embed[:, 3:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        wanted = F.interpolate(patches, scale_factor=(10 / 4, 8 / 4), mode="bicubic")
        found = plus.positions(80, 64)[:, 3:].transpose(1, 2).reshape(wanted.shape)
        assert torch.allclose(found, wanted, atol=1e-5)
        assert not torch.allclose(tiny_model().positions(80, 64), plus.positions(80, 64))

    def test_tokens_of_every_layer_come_with_the_logits(self):
        model = tiny_model(patch_decay=0.9)
        assert model(IMAGES).tokens is None
        model.keeps_tokens = True
        logits = model(IMAGES)
        assert logits.tokens.shape == (4, 2, 3, 48)
        assert torch.allclose(logits.tokens[-1].mean(-1), logits.classes)
        captured = model.capture(IMAGES)
        assert torch.allclose(logits.patches, ranked_mean(captured.cam, 0.9), atol=1e-5)

    def test_its_public_layout_opens(self, tmp_path):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = ClassTokenViT(
                ClassifierConfig(("a", "b"), "vit_tiny_patch16_224",
                                 {"depth": 2, "embed_dim": 64, "num_heads": 1}, 32)
            )  # fmt: skip
        state = dict(made.state_dict())
        positions = state.pop("pos_embed")
        state |= {"pos_embed_cls": positions[:, :2], "pos_embed_pat": positions[:, 2:],
                  "norm.weight": torch.ones(64)}  # fmt: skip
        torch.save({"model": state}, tmp_path / "plus.pth")
        opened = load_model(tmp_path / "plus.pth")
        assert (opened.config.split_positions, opened.config.patch_decay) == (True, 0.996)
        assert torch.equal(opened.pos_embed, positions)
        torch.save({"model": dict(made.state_dict())}, tmp_path / "v2.pth")
        assert not load_model(tmp_path / "v2.pth").config.split_positions


class TestFusion:
    """WeakTr's adaptive attention fusion with mean pooling."""

    def test_the_weights_are_those_of_the_pooled_maps(self):
        fusion = AttentionFusion(2, 3)
        maps = torch.softmax(torch.randn(2, 4, 3, 7, 7), -1)  # [L, B, M, T, T]
        pooled = maps.transpose(0, 1).flatten(1, 2).mean((2, 3))  # of each image, L * M
        for found in fusion.fc(pooled):
            assert torch.allclose(found.reshape(2, 3), fusion(7), atol=1e-6)
        wanted = (maps * fusion(7)[:, None, :, None, None]).mean((0, 2))
        assert torch.allclose(fused_attention(list(maps), fusion(7)), wanted, atol=1e-6)

    @pytest.mark.parametrize("backend", ["eager", "reference"])
    def test_capture_weights_layers_and_heads(self, backend):
        model = tiny_model(adaptive_fusion=True).double()
        images = IMAGES.double()
        maps, _ = attention_of(model, images)
        weights = model.fusion(maps[0].shape[-1])
        weighted = [m * w[:, None, None] for m, w in zip(maps, weights, strict=True)]
        captured = model.capture(images, 2, 3, backend)
        c2p = torch.stack([one.mean(1)[:, :3, 3:] for one in weighted[-2:]])
        p2p = torch.stack([one.mean(1)[:, 3:, 3:] for one in weighted[-3:]]).mean(0)
        assert torch.allclose(captured.c2p_by_layer, c2p, atol=1e-12)
        assert torch.allclose(captured.p2p, p2p, atol=1e-12)

    def test_only_the_weights_learn_from_the_fine_map(self):
        model = tiny_model(adaptive_fusion=True)
        assert model(IMAGES).fine is None
        model.train()
        logits = model(IMAGES)
        logits.fine.sum().backward()
        learnt = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert learnt == {n for n, _ in model.named_parameters() if n.startswith("fusion.")}
        assert torch.allclose(logits.classes, model.eval()(IMAGES).classes, atol=1e-5)
        captured = model.capture(IMAGES, 4, 4)
        maps = kernels.refine(captured.cam.flatten(2), captured.c2p, captured.p2p,
                              ["original+c2p+p2p"])["original+c2p+p2p"]  # fmt: skip
        assert torch.allclose(maps.mean(-1), logits.fine, atol=1e-5)

    def test_weights_of_other_layers_are_refused(self):
        with pytest.raises(ValueError, match="weights of 4 layers"):
            kernels.AttentionCapture(3, 4, weights=torch.ones(3, 2))


@torch.no_grad()
def test_an_attending_block_is_timms():
    model = tiny_model()
    x = model._embed(IMAGES)
    found, probabilities = attending_block(model.blocks[0], x)
    assert torch.allclose(found, model.blocks[0](x), atol=1e-5)
    assert torch.allclose(probabilities.sum(-1), torch.ones(()), atol=1e-5)
    capture = kernels.AttentionCapture(3, 1, 1, 1)
    assert torch.allclose(captured_block(model.blocks[0], x.clone(), 0, capture), found, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_the_root_joins_cam_and_attention(backend):
    drawn = torch.Generator().manual_seed(0)
    cam = torch.randn(2, 3, 10, generator=drawn, dtype=torch.float64)
    c2p = torch.rand(2, 3, 10, generator=drawn, dtype=torch.float64)
    p2p = torch.rand(2, 10, 10, generator=drawn, dtype=torch.float64)
    stages = ["original", "original+c2p", "modulated", "final"]
    plain = kernels.refine(cam, c2p, p2p, stages, backend=backend)
    found = kernels.refine(cam, c2p, p2p, stages, fuse="sqrt", backend=backend)
    assert torch.equal(found["original"], plain["original"])
    for stage in ("original+c2p", "modulated"):
        assert torch.allclose(found[stage], plain[stage].sqrt(), atol=1e-12)
    wanted = plain["modulated"].sqrt() @ p2p.transpose(1, 2)
    assert torch.allclose(found["final"], wanted, atol=1e-12)
    with pytest.raises(ValueError, match="fuse product or sqrt"):
        kernels.refine(cam, c2p, p2p, fuse="sum")
    options = CamOptions(fuse="sqrt")
    assert options.epsilon("final", 12) == pytest.approx(1e-8 / 12)
    assert CamOptions().epsilon("final", 12) == pytest.approx(1e-8 / 36)


@pytest.mark.parametrize(
    "changes",
    [{"one_token": True, "final_norm": True}, {"patch_decay": 0.9, "split_positions": True},
     {"adaptive_fusion": True}],
)  # fmt: skip
def test_checkpoints_come_back_and_segmenters_start_from_them(tmp_path, changes):
    model = tiny_model(**changes)
    save_model(model, tmp_path / "m.safetensors")
    opened = load_model(tmp_path / "m.safetensors")
    assert opened.config == model.config and weights_hash(opened) == weights_hash(model)
    assert weights_hash(model) != weights_hash(tiny_model())
    about, start = from_classifier(model)
    segmenter = Segmenter(SegmenterConfig(("cat", "dog", "cow"), **about))
    start(segmenter.net.core)
    trained = {name for name, _ in segmenter.named_parameters()}
    assert not any("fusion" in name or "vit.norm" in name for name in trained)
    assert torch.allclose(segmenter.net.core.encode(IMAGES), model.encode(IMAGES))


def test_the_paper_s_networks_have_the_identity_they_had():
    told = tiny_config().to_json()
    assert not {"one_token", "patch_decay", "split_positions", "final_norm"} & set(told)
    assert ClassifierConfig.from_json(told) == tiny_config()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"one_token": True, "patch_head": False}, "patch head"),
        ({"adaptive_fusion": True, "patch_head": False}, "patch head"),
        ({"patch_decay": 0.0}, "patch decay"),
        ({"patch_decay": 1.5}, "patch decay"),
    ],
)
def test_what_does_not_fit_is_refused(changes, told):
    with pytest.raises(WsssError, match=told):
        tiny_config(**changes)
