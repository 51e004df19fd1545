"""The family: numbers by hand, equality with smp where it is right, and where it is not."""

from __future__ import annotations

import math

import monai.losses
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from transferseg.errors import SpecError
from transferseg.losses import (
    BoundaryLoss,
    FocalLoss,
    FocalTverskyLoss,
    JaccardLoss,
    LovaszLoss,
    TverskyLoss,
    binary_cross_entropy,
    boundary_loss,
    cross_entropy,
    focal_loss,
    focal_tversky_loss,
    jaccard_loss,
    lovasz_loss,
    mean_dice_loss,
    signed_distances,
    tversky_loss,
)

MODES = ["binary", "multiclass", "multilabel"]
modes = pytest.mark.parametrize("mode", MODES)
indices = pytest.mark.parametrize("ignore_index", [None, 255])
SMP = tuple(map(int, smp.__version__.split(".")[:2]))


def batch(mode, ignore_index=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    classes = 1 if mode == "binary" else 3
    logits = 2 * torch.randn(3, classes, 6, 7, generator=generator, dtype=torch.float64)
    if mode == "multiclass":
        target = torch.randint(0, 3, (3, 6, 7), generator=generator)
    else:
        target = torch.randint(0, 2, (3, classes, 6, 7), generator=generator)
    if ignore_index is not None:
        target[..., :2] = ignore_index
    return logits.to(dtype), target


def probability(values):
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1).logit()


MASK = torch.tensor([[[[1, 0, 1, 0]]]])
P = [0.9, 0.2, 0.4, 0.1]  # overlap 1.3, predicted 1.6, true 2


def test_by_hand():
    logits = probability(P)
    options = {"mode": "binary", "eps": 1e-12}
    assert jaccard_loss(logits, MASK, **options).item() == pytest.approx(1 - 1.3 / 2.3)
    index = 1.3 / (1.3 + 0.2 * 0.3 + 0.8 * 0.7)
    loss = tversky_loss(logits, MASK, alpha=0.2, beta=0.8, **options)
    assert loss.item() == pytest.approx(1 - index)
    loss = focal_tversky_loss(logits, MASK, alpha=0.2, beta=0.8, gamma=2.0, **options)
    assert loss.item() == pytest.approx(math.sqrt(1 - index))
    terms = [0.1**2 * -math.log(0.9), 0.2**2 * -math.log(0.8), 0.6**2 * -math.log(0.4)]
    expected = (sum(terms) + 0.1**2 * -math.log(0.9)) / 4
    assert focal_loss(logits, MASK, mode="binary").item() == pytest.approx(expected)


def test_absent_class_by_hand():
    logits, none = probability(P), torch.zeros(1, 1, 1, 4)
    assert jaccard_loss(logits, none, mode="binary").item() == pytest.approx(1.6 / 4)
    square = 0.81 + 0.04 + 0.16 + 0.01
    loss = jaccard_loss(logits, none, mode="binary", squared=True)
    assert loss.item() == pytest.approx(square / (4 - 1.6 + square))
    loss = tversky_loss(logits, none, mode="binary", alpha=0.3, beta=0.7)
    assert loss.item() == pytest.approx(0.3 * 1.6 / (4 - 1.6 + 0.3 * 1.6))
    assert tversky_loss(logits, none, mode="binary", alpha=0.0).item() == 0
    everything = torch.full((1, 1, 2, 2), 100.0, requires_grad=True)
    loss = tversky_loss(everything, torch.zeros(1, 1, 2, 2), mode="binary", alpha=0.0)
    loss.backward()
    assert everything.grad.isfinite().all()


@modes
def test_tversky_holds_dice_and_jaccard(mode):
    logits, target = batch(mode, 255)
    options = {"mode": mode, "eps": 1e-9}
    dice = mean_dice_loss(logits, target, squared=False, **options)
    torch.testing.assert_close(tversky_loss(logits, target, alpha=0.5, beta=0.5, **options), dice)
    jaccard = jaccard_loss(logits, target, **options)
    torch.testing.assert_close(tversky_loss(logits, target, alpha=1, beta=1, **options), jaccard)


@pytest.mark.skipif(SMP < (0, 6), reason="smp's Jaccard loss ignored no pixel before")
@modes
@indices
def test_smp_agrees_on_regions_where_every_class_is_present(mode, ignore_index):
    logits, target = batch(mode, ignore_index)
    options = {"mode": mode, "per_image": False, "ignore_index": ignore_index}
    theirs = smp.losses.JaccardLoss(mode, ignore_index=ignore_index)(logits, target)
    torch.testing.assert_close(JaccardLoss(**options)(logits, target), theirs, atol=1e-5, rtol=0)
    weights = {"alpha": 0.3, "beta": 0.7}
    theirs = smp.losses.TverskyLoss(mode, ignore_index=ignore_index, **weights)(logits, target)
    ours = TverskyLoss(**options, **weights)(logits, target)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_smp_raises_the_mean_to_the_power_and_not_each_class():
    """Disagreement with smp, on purpose: equal for one class, not for several."""
    for mode, equal in (("binary", True), ("multilabel", False)):
        logits, target = batch(mode)
        ours = FocalTverskyLoss(mode, gamma=4 / 3, per_image=False)(logits, target)
        theirs = smp.losses.TverskyLoss(mode, alpha=0.3, beta=0.7, gamma=3 / 4)(logits, target)
        assert (ours.item() == pytest.approx(theirs.item(), abs=1e-6)) == equal
        each = [
            tversky_loss(logits[:, [k]], target[:, [k]], mode="binary", per_image=False) ** 0.75
            for k in range(logits.shape[1])
        ]
        torch.testing.assert_close(ours, torch.stack(each).mean(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["DiceLoss", "JaccardLoss", "TverskyLoss"])
def test_smp_on_an_empty_mask_in_half_precision_and_under_ignored_pixels(name):
    """What is ours for: there 0 with false positives everywhere, NaN, and NaN again."""
    theirs = getattr(smp.losses, name)
    ours = {"DiceLoss": mean_dice_loss, "JaccardLoss": jaccard_loss, "TverskyLoss": tversky_loss}
    everywhere, nothing = torch.full((1, 1, 4, 4), 40.0), torch.zeros(1, 1, 4, 4)
    assert theirs("binary")(everywhere, nothing).item() == 0
    assert ours[name](everywhere, nothing, mode="binary").item() == pytest.approx(1)

    large = torch.full((1, 1, 300, 300), 2.0, dtype=torch.float16)
    mask = torch.ones(1, 1, 300, 300)
    assert not theirs("binary")(large, mask).isfinite()
    expected = ours[name](large.double(), mask, mode="binary").item()
    assert ours[name](large, mask, mode="binary").item() == pytest.approx(expected, abs=1e-6)

    wild, ignored = torch.tensor([[[[torch.nan, 1.0]]]]), torch.tensor([[[[255, 1]]]])
    if SMP >= (0, 6) or name != "JaccardLoss":
        assert theirs("binary", ignore_index=255)(wild, ignored).isnan()
    assert ours[name](wild, ignored, mode="binary").isfinite()


@modes
@pytest.mark.parametrize("class_weight", [None, [0.5, 2.0, 3.0]])
def test_focal_without_focus_is_the_cross_entropy(mode, class_weight):
    logits, target = batch(mode, 255)
    class_weight = class_weight if mode != "binary" else None
    entropy = cross_entropy if mode == "multiclass" else binary_cross_entropy
    expected = entropy(logits, target, class_weight=class_weight)
    loss = FocalLoss(mode, gamma=0.0, class_weight=class_weight)
    torch.testing.assert_close(loss(logits, target), expected)


@pytest.mark.parametrize(
    ("mode", "ignore_index"), [("binary", None), ("binary", 255), ("multilabel", None)]
)
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_smp_agrees_on_focal_loss_of_independent_classes(mode, ignore_index, alpha):
    options = {"alpha": alpha, "gamma": 2.0, "ignore_index": ignore_index}
    logits, target = batch(mode, ignore_index)
    theirs = smp.losses.FocalLoss(mode, **options)(logits, target)
    torch.testing.assert_close(FocalLoss(mode, **options)(logits, target), theirs)


@pytest.mark.skipif(SMP < (0, 6), reason="smp took the pixels for others before")
def test_smp_ignores_no_pixel_of_overlapping_classes():
    logits, target = batch("multilabel", 255)
    with pytest.raises(IndexError, match="too many indices"):
        smp.losses.FocalLoss("multilabel", ignore_index=255)(logits, target)
    cut = focal_loss(logits[..., 2:], target[..., 2:], mode="multilabel")
    torch.testing.assert_close(focal_loss(logits, target, mode="multilabel"), cut)


def test_focal_loss_of_exclusive_classes_is_of_the_softmax():
    """Disagreement with smp, on purpose: there each class is a sigmoid against the rest."""
    logits, target = batch("multiclass")
    entropy = F.cross_entropy(logits, target, reduction="none")
    expected = ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()
    torch.testing.assert_close(focal_loss(logits, target, mode="multiclass"), expected)
    theirs = smp.losses.FocalLoss("multiclass")(logits, target)
    assert theirs.item() != pytest.approx(expected.item())
    nothing = torch.full((1, 1, 2, 2), 255)
    assert smp.losses.FocalLoss("binary", ignore_index=255)(torch.ones(1, 1, 2, 2), nothing).isnan()
    assert focal_loss(torch.ones(1, 1, 2, 2), nothing, mode="binary").item() == 0


@indices
@pytest.mark.parametrize("mode", ["binary", "multiclass"])
@pytest.mark.parametrize("per_image", [True, False])
def test_smp_agrees_on_lovasz(mode, ignore_index, per_image):
    logits, target = batch(mode, ignore_index)
    options = {"per_image": per_image, "ignore_index": ignore_index}
    theirs = smp.losses.LovaszLoss(mode, **options)(logits, target)
    torch.testing.assert_close(LovaszLoss(mode, **options)(logits, target), theirs)


def test_lovasz_of_overlapping_classes_is_the_mean_of_each():
    """Disagreement with smp, on purpose: there all classes are one mask."""
    logits, target = batch("multilabel", 255)
    each = [
        smp.losses.LovaszLoss("binary", ignore_index=255)(logits[:, [k]], target[:, [k]])
        for k in range(3)
    ]
    ours = lovasz_loss(logits, target, mode="multilabel", per_image=False)
    torch.testing.assert_close(ours, torch.stack(each).mean())
    theirs = smp.losses.LovaszLoss("multilabel", ignore_index=255)(logits, target)
    assert theirs.item() != pytest.approx(ours.item())


def test_lovasz_of_hard_predictions_is_the_jaccard_loss():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        truth = torch.randint(0, 2, (1, 5, 5), generator=generator)
        guess = torch.randint(0, 2, (1, 5, 5), generator=generator)
        logits = 200.0 * F.one_hot(guess, 2).movedim(-1, 1).float()
        iou = [
            ((truth == k) & (guess == k)).sum() / ((truth == k) | (guess == k)).sum()
            for k in (0, 1)
        ]
        loss = lovasz_loss(logits, truth, mode="multiclass")
        assert loss.item() == pytest.approx(1 - sum(iou).item() / 2, abs=1e-6)


def test_lovasz_policy_of_an_absent_class():
    logits = torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]])
    target = torch.zeros(1, 1, 2).long()
    p = logits.softmax(1)
    present = (1 - p[0, 0]).max() / 2 + (1 - p[0, 0]).min() / 2
    absent = p[0, 1].max()
    loss = lovasz_loss(logits, target, mode="multiclass", empty="skip")
    torch.testing.assert_close(loss, present)
    loss = lovasz_loss(logits, target, mode="multiclass")
    torch.testing.assert_close(loss, (present + absent) / 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TverskyLoss("binary", alpha=-1), "alpha must be finite and 0 or more, got -1"),
        (lambda: TverskyLoss("binary", alpha=0, beta=0), "no mistake costs anything"),
        (lambda: JaccardLoss("binary", eps=math.inf), "eps must be above 0 .* and finite"),
        (lambda: FocalTverskyLoss("binary", gamma=0.75), "gamma must be 1 or more"),
        (lambda: FocalLoss("binary", alpha=2.0), "alpha must lie between 0 and 1"),
        (lambda: FocalLoss("multiclass", alpha=0.5), "give class_weight"),
        (lambda: LovaszLoss("binary", empty="zero"), "unknown empty policy 'zero'"),
        (lambda: JaccardLoss("binray"), "Did you mean 'binary'"),
    ],
)
def test_wrong_options(build, message):
    with pytest.raises(SpecError, match=message):
        build()


@pytest.mark.parametrize("loss", [focal_loss, lovasz_loss])
def test_losses_of_hard_classes_refuse_probabilities(loss):
    with pytest.raises(SpecError, match="takes class indices"):
        loss(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), 0.5), mode="multiclass")


@pytest.mark.skipif(not hasattr(monai.losses, "BoundaryLoss"), reason="newer than MONAI 1.5")
@modes
def test_monai_agrees_on_the_boundary_loss(mode):
    logits, target = batch(mode)
    theirs = monai.losses.BoundaryLoss(
        sigmoid=mode != "multiclass", softmax=mode == "multiclass", to_onehot_y=mode == "multiclass"
    )
    labels = target[:, None] if mode == "multiclass" else target
    ours = BoundaryLoss(mode, ignore_index=None)(logits, target)
    torch.testing.assert_close(ours, theirs(logits, labels))


def test_lovasz_keeps_its_digits_on_a_large_mask():
    """A pixel adds about 4e-6 to the Jaccard loss, of which a difference near 1 keeps 2 %."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 1, 512, 512, generator=generator)
    target = torch.rand(1, 1, 512, 512, generator=generator) < 0.1
    gradients = []
    for x in (logits, logits.double()):
        x.requires_grad_()
        lovasz_loss(x, target, mode="binary").backward()
        gradients.append(x.grad.double())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=0)  # ties of float32 in another order
    x = logits.detach().requires_grad_()
    smp.losses.LovaszLoss("binary", per_image=True)(x, target.long()).backward()
    some = gradients[1] != 0
    error = ((x.grad.double() - gradients[1]) / gradients[1])[some].abs()
    assert error.max() > 0.005  # what the difference costs


def test_smp_lovasz_of_absent_classes_of_nothing_and_in_half_precision():
    """Disagreement with smp, on purpose: absent classes cost nothing, half precision fails."""
    logits, target = batch("multiclass", dtype=torch.float16)
    with pytest.raises(RuntimeError, match="same dtype"):
        smp.losses.LovaszLoss("multiclass")(logits, target)
    nothing = torch.full_like(target, 255)
    empty = smp.losses.LovaszLoss("multiclass", ignore_index=255)(logits.float(), nothing)
    assert empty.numel() == 0
    assert lovasz_loss(logits, target, mode="multiclass").dtype == torch.float32
    logits = logits.float()
    target.clamp_(max=1)
    theirs = smp.losses.LovaszLoss("multiclass")(logits, target)
    options = {"mode": "multiclass", "per_image": False}
    torch.testing.assert_close(lovasz_loss(logits, target, empty="skip", **options), theirs)
    assert lovasz_loss(logits, target, **options).item() != pytest.approx(theirs.item())


def test_smp_focal_loss_stays_in_half_precision():
    logits, target = batch("binary", dtype=torch.float16)
    assert smp.losses.FocalLoss("binary")(logits, target).dtype == torch.float16
    assert focal_loss(logits, target, mode="binary").dtype == torch.float32


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0,), (1.0, -1.0), (1.0, math.nan)])
def test_the_size_of_a_pixel_is_above_zero(spacing):
    for build in (
        lambda: BoundaryLoss("binary", spacing=spacing),
        lambda: signed_distances(MASK, mode="binary", classes=1, spacing=spacing),
    ):
        with pytest.raises(SpecError, match="spacing must be the height and the width of a pixel"):
            build()


def test_the_boundary_of_probabilities_is_refused_with_distances_too():
    logits = torch.zeros(1, 2, 2, 2)
    with pytest.raises(SpecError, match="takes class indices"):
        boundary_loss(logits, logits.softmax(1), mode="multiclass", distances=logits)
