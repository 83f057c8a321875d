"""From CAM to pseudo-label: background scores, energies, the decision, and what is refused."""

import numpy as np
import pytest
import torch

from wsssfast.errors import BadFile, WsssError
from wsssfast.kernels import Pairwise, dense_crf
from wsssfast.labels.options import LabelOptions, label_identity, options_of
from wsssfast.labels.rules import class_scores, decide, energies, pseudo_labels
from wsssfast.threshold import threshold


def smooth(channels, height, width, seed=0):
    coarse = torch.rand(1, channels, 3, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


CAM = smooth(2, 20, 26)
IMAGE = (smooth(3, 20, 26, 1) * 255).byte().permute(1, 2, 0).numpy()
LABELS = (1, 4)


def test_background_scores_are_constant_or_what_the_largest_leaves():
    two = class_scores(CAM, LabelOptions("final", (0.2, 0.6)))
    assert two.shape == (2, 3, 20, 26)
    assert two[0, 0].eq(0.6).all() and two[1, 0].eq(0.2).all()  # the most background first
    powers = class_scores(CAM, LabelOptions("final", background_exponent=(1, 12)))
    largest = CAM.amax(0)
    assert torch.allclose(powers[0, 0], 1 - largest)
    assert torch.allclose(powers[1, 0], (1 - largest) ** 12)
    assert torch.equal(powers[1, 1:], CAM)


def test_energies_are_clipped_logarithms_or_those_of_labels():
    scores = torch.tensor([[0.5, 0.0], [0.25, 1.0], [0.1, 0.2]])[..., None]  # [K, H, W]
    assert torch.allclose(energies(scores), -scores.clamp(1e-5, 1).log())
    utils = pytest.importorskip("pydensecrf.utils", reason="pydensecrf is not installed")
    for classes in (2, 3):
        some = torch.rand(classes, 4, 5)
        theirs = utils.unary_from_labels(
            some.argmax(0).numpy(), classes, gt_prob=0.7, zero_unsure=False
        )
        assert np.allclose(energies(some, 0.7).flatten(1), theirs)


@pytest.mark.parametrize("background", [(0.4,), (0.2, 0.6)])
def test_the_decision_over_constant_scores_is_the_threshold_s(background):
    options = LabelOptions("final", background)
    wanted = threshold(np.array(LABELS), CAM.numpy(), background)
    assert np.array_equal(decide(class_scores(CAM, options), LABELS, options), wanted)
    assert np.array_equal(pseudo_labels([CAM], [LABELS], [None], options)[0], wanted)
    assert (255 in wanted) is (len(background) == 2)


def test_two_exponents_ignore_what_they_do_not_agree_on():
    one = [
        pseudo_labels([CAM], [LABELS], [None], LabelOptions("final", background_exponent=(a,)))[0]
        for a in (0.5, 3)
    ]
    options = LabelOptions("final", background_exponent=(0.5, 3))
    both = pseudo_labels([CAM], [LABELS], [None], options)[0]
    for y, x in np.ndindex(both.shape):
        strict, lenient = one[0][y, x], one[1][y, x]
        wanted = 0 if lenient == 0 else strict if strict else 255
        assert both[y, x] == wanted
    assert set(np.unique(both)) >= {0, 255}


@pytest.mark.parametrize("certainty", [None, 0.7])
def test_a_crf_decides_by_the_marginals_of_pydensecrf(certainty):
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed")
    crf = Pairwise(bilateral_sxy=50, bilateral_srgb=5)
    options = LabelOptions("final", (0.2, 0.6), refine="crf", crf=crf, certainty=certainty)
    strict, lenient = (
        dense_crf(
            [torch.from_numpy(IMAGE)], [energies(scores, certainty)], crf, backend="pydensecrf"
        )[0].argmax(0)
        for scores in class_scores(CAM, options)
    )
    wanted = np.array([0, 2, 5], np.uint8)[strict.numpy()]
    wanted[(wanted == 0) & (lenient.numpy() > 0)] = 255
    found = pseudo_labels([CAM], [LABELS], [IMAGE], options)[0]
    assert np.array_equal(found, wanted)
    plain = pseudo_labels([CAM], [LABELS], [None], LabelOptions("final", (0.2, 0.6)))[0]
    assert (found != plain).mean() > 0.005


def test_images_without_labels_zero_maps_and_batches_of_any_sizes():
    options = LabelOptions("final", (0.4,), refine="crf")
    other = smooth(1, 7, 5, 3)
    cams = [CAM, torch.zeros(0, 9, 4), torch.zeros(1, 7, 5), other]
    labels = [LABELS, (), (0,), (2,)]
    images = [IMAGE, None, np.full((7, 5, 3), 7, np.uint8), np.full((7, 5, 3), 9, np.uint8)]
    masks = pseudo_labels(cams, labels, images, options)
    assert [mask.shape for mask in masks] == [(20, 26), (9, 4), (7, 5), (7, 5)]
    assert not masks[1].any() and not masks[2].any()
    for n in (0, 3):
        alone = pseudo_labels([cams[n]], [labels[n]], [images[n]], options)[0]
        assert np.array_equal(masks[n], alone)


def test_where_both_settings_are_sure_of_different_things():
    """Only a CRF can make it so: IRN keeps the class, PSA and MCTformer the background."""
    marginals = torch.tensor([[0.2, 0.8], [0.7, 0.3]])[..., None, None]  # [G, 1 + K, 1, 1]
    for options, wanted in (
        (LabelOptions("final", (0.1, 0.3)), 5),
        (LabelOptions("final", background_exponent=(1, 12)), 0),
    ):
        assert decide(marginals, (4,), options).tolist() == [[wanted]]


@pytest.mark.parametrize("refine", ["none", "crf"])
def test_a_cam_that_is_not_finite_is_a_bad_file(refine):
    cam = CAM.clone()
    cam[0, 3, 3] = torch.nan
    options = LabelOptions("final", (0.4,), refine=refine)
    with pytest.raises(BadFile, match="not finite"):
        pseudo_labels([cam], [LABELS], [IMAGE], options)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "found none"),
        ({"background": (0.4,), "background_exponent": (4,)}, "found both"),
        ({"background": (0.4,), "certainty": 0.3}, "a certainty from 0.5"),
        ({"background_exponent": (0,)}, "exponent above 0"),
        ({"background_exponent": (12, 1)}, "the lower first, found 12,1"),
        ({"background_exponent": (1, 2, 3)}, "exponent above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, told):
    with pytest.raises(WsssError, match=told):
        LabelOptions("final", **wrong)


def test_the_identity_names_what_takes_part_and_nothing_else():
    cams = {"class_names": ["a"], "weights": "x"}
    plain = label_identity(cams, LabelOptions("final", (0.4,)))
    assert plain.keys() == {
        "format_version", "class_names", "stage", "background", "refine", "cams.weights",
    }  # fmt: skip
    refined = label_identity(
        cams, LabelOptions("final", background_exponent=(1, 12), refine="crf", certainty=0.7)
    )
    assert refined.keys() - plain.keys() == {
        "background_exponent", "certainty", "crf_gaussian_sxy", "crf_gaussian_compat",
        "crf_bilateral_sxy", "crf_bilateral_srgb", "crf_bilateral_compat", "crf_iterations",
    }  # fmt: skip
    assert "background" not in refined


def psa_cells(low, high, cell):
    """Ahn and Kwak's labels of cells from two CRFs' probabilities [K, H, W], one cell at a time."""
    _, height, width = low.shape
    rows, columns = -(-height // cell), -(-width // cell)
    mask = np.zeros((rows, columns), np.uint8)
    for y in range(rows):
        for x in range(columns):
            square = np.s_[:, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]
            by_low, by_high = (part[square].sum((1, 2)).argmax() for part in (low, high))
            mask[y, x] = 0 if by_high == 0 else 255 if by_low == 0 else LABELS[by_low - 1] + 1
    return mask


@pytest.mark.parametrize("cell", [8, 7, 32])
def test_cells_are_decided_by_their_mean_scores(cell):
    options = LabelOptions("final", background_exponent=(0.5, 1), refine="crf", cell=cell)
    found = pseudo_labels([CAM], [LABELS], [IMAGE], options)[0]
    energy = energies(class_scores(CAM, options))
    low, high = dense_crf([torch.from_numpy(IMAGE)], [energy], options.crf)[0].numpy()
    assert np.array_equal(found, psa_cells(low, high, cell))
    assert cell != 8 or {0, 255} < set(found.flatten())
    plain = LabelOptions("final", (0.4,), cell=cell)
    scores = class_scores(CAM, plain)[0].numpy()
    assert np.array_equal(
        pseudo_labels([CAM], [LABELS], [None], plain)[0], psa_cells(scores, scores, cell)
    )
    assert not pseudo_labels([CAM[:0]], [()], [None], plain)[0].any()


def test_cells_are_part_of_the_identity():
    cams = {"class_names": ["a"], "weights": "x"}
    options = LabelOptions("final", background_exponent=(1, 12), refine="crf", cell=8)
    identity = label_identity(cams, options)
    assert identity["cell"] == 8 and options_of(identity) == options
    assert "cell" not in label_identity(cams, LabelOptions("final", (0.4,)))
    with pytest.raises(WsssError, match="cells of 1 to 256"):
        LabelOptions("final", (0.4,), cell=0)
