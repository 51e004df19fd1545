"""Recipes of papers, and one of our own: plain functions that each give a `Recipe`.

Every number is a keyword, and stands in the docstring with its source; where a paper says nothing
it is marked *ours*, or as what the paper's library does. All else is changed with
`recipe.replace(...)`. Zoetmulder et al. 2022 is not here: of that paper we have the abstract alone,
which has no numbers of the training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from transferseg.data import (
    Augment,
    AugmentationChain,
    ColourJitter,
    RandomScaleCrop,
    RotatingKFold,
    flips_augmentation,
    khadka2020_augmentation,
    merand2021_augmentation,
    mmseg_augmentation,
)
from transferseg.errors import TrainingError
from transferseg.losses import BCEDiceLoss
from transferseg.spec import InputSpec
from transferseg.training.optimizers import adam, adamw, sgd
from transferseg.training.recipe import Recipe
from transferseg.training.schedules import cosine, plateau, polynomial


def zhou2022_sgd(
    *,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.005,
    power: float = 0.9,
    steps: int = 16_000,
    batch_size: int = 8,
    size: int = 640,
    crop: int = 512,
    flip: float = 0.5,
    scale: tuple[float, float] = (1.0, 1.0),
    largest_share: float = 1.0,
    auxiliary_weight: float = 0.4,
) -> Recipe:
    """Fine-tuning of MMSegmentation's convolutional networks on polyps, with SGD.

    Args:
        lr: initial learning rate 0.01 (Experimental Setup).
        momentum: 0.9 (Experimental Setup).
        weight_decay: 0.005 (Experimental Setup; MMSegmentation's own is 0.0005). On every
            parameter, norms and biases too, as in MMSegmentation; the paper does not say.
        power: of the polynomial lr x (1 - iter / max_iter) ** power, 0.9 (Experimental Setup). It
            ends at 0, as the formula does; MMSegmentation's schedules end at 0.0001.
        steps: 16,000 iterations, "equivalent to 160 epochs" (Experimental Setup).
        batch_size: 8 (Experimental Setup).
        size: resized to 640 x 640, for training and test (Experimental Setup).
        crop: 512 x 512, at random (Experimental Setup).
        flip: of left and right, 0.5 (Experimental Setup; the direction is MMSegmentation's).
        scale: 1: the paper names no random scale. MMSegmentation's configs have (0.5, 2.0).
        largest_share: 1: the paper names none. MMSegmentation's configs have 0.75.
        auxiliary_weight: 0.4, of MMSegmentation's configs; the paper does not say. Models without
            an auxiliary head train without.

    Colours: "brightness, contrast, and saturation jitter" (Experimental Setup); the numbers, and
    hue, are those of MMSegmentation's `PhotoMetricDistortion`: see `ColourJitter`. Normalised as
    the weights expect: in the paper with ImageNet's mean and standard deviation. Loss:
    cross-entropy, the default of MMSegmentation; the paper does not say. There is no early
    stopping: the last weights are scored.

    Raises:
        TrainingError: a crop larger than the image.

    Source: Zhou 2022, "Experimental Setup"; MMSegmentation, configs/_base_.

    Example:
        >>> zhou2022_sgd(steps=200).schedule
        Schedule(shape='polynomial', warmup_steps=0, final=0.0, power=0.9)
    """
    return Recipe(
        name="zhou2022_sgd",
        optimizer=partial(
            sgd, lr=lr, momentum=momentum, weight_decay=weight_decay, decay_norms_and_biases=True
        ),
        schedule=polynomial(power=power),
        loss=partial(BCEDiceLoss, dice_weight=0.0),
        steps=steps,
        batch_size=batch_size,
        size=size,
        augment=_zhou2022_augment(size, crop, flip, scale, largest_share),
        auxiliary_weight=auxiliary_weight,
    )


def zhou2022_adamw(
    *,
    lr: float = 6e-5,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.01,
    power: float = 0.9,
    warmup_steps: int | None = None,
    steps: int = 16_000,
    batch_size: int = 8,
    size: int = 640,
    crop: int = 512,
    flip: float = 0.5,
    scale: tuple[float, float] = (1.0, 1.0),
    largest_share: float = 1.0,
    auxiliary_weight: float = 0.4,
) -> Recipe:
    """Fine-tuning of MMSegmentation's transformers (UPerNet over ViT, Swin) on polyps, with AdamW.

    The paper names AdamW and its learning rate; all else of its setup holds for all networks, and
    what it leaves open is taken from MMSegmentation's configs of these networks.

    Args:
        lr: initial learning rate 6e-5 (Effect of Backbone).
        betas: (0.9, 0.999), MMSegmentation's.
        weight_decay: 0.01, MMSegmentation's for AdamW (the paper's 0.005 stands beside SGD). Not
            on norms, position embeddings and tables of relative positions, as there; here not on
            biases either, which MMSegmentation decays.
        power: 0.9 (Experimental Setup, "for all networks"); MMSegmentation's configs have 1.0.
        warmup_steps: of linear warm-up, MMSegmentation's 1,500 of 16,000 (and the same share of
            other `steps`) when not given. It begins at 1 / 1501 of the rate, there at 1e-6 of it.
        steps: 16,000 iterations (Experimental Setup).
        batch_size: 8 (Experimental Setup).
        size: see `zhou2022_sgd`, as for all that follows.
        crop: see `zhou2022_sgd`.
        flip: see `zhou2022_sgd`.
        scale: see `zhou2022_sgd`.
        largest_share: see `zhou2022_sgd`.
        auxiliary_weight: see `zhou2022_sgd`.

    Raises:
        TrainingError: a crop larger than the image.

    Source: Zhou 2022, "Experimental Setup" and "Effect of Backbone for the Segmentation Network";
        MMSegmentation, configs/swin and configs/vit.

    Example:
        >>> zhou2022_adamw().schedule.warmup_steps, zhou2022_adamw(steps=160).schedule.warmup_steps
        (1500, 15)
    """
    warmup = round(steps * 1_500 / 16_000) if warmup_steps is None else warmup_steps
    return Recipe(
        name="zhou2022_adamw",
        optimizer=partial(adamw, lr=lr, betas=betas, weight_decay=weight_decay),
        schedule=polynomial(power=power, warmup_steps=warmup),
        loss=partial(BCEDiceLoss, dice_weight=0.0),
        steps=steps,
        batch_size=batch_size,
        size=size,
        augment=_zhou2022_augment(size, crop, flip, scale, largest_share),
        auxiliary_weight=auxiliary_weight,
    )


def _zhou2022_augment(
    size: int, crop: int, flip: float, scale: tuple[float, float], largest_share: float
) -> Augment:
    if crop > size:
        raise TrainingError(
            f"a crop of {crop} px is larger than the image of {size} px; give crop= and size=."
        )
    return mmseg_augmentation(crop, scale=scale, largest_share=largest_share, reflect=flip)


def khadka2020(
    *,
    lr: float = 1e-4,
    penalty: float = 1e-5,
    epochs: int = 50,
    batch_size: int = 16,
    size: int = 256,
    factor: float = 0.1,
    plateau_patience: int = 5,
    patience: int | None = 10,
    score: str = "mean_dice",
) -> Recipe:
    """Fine-tuning of an Attention U-Net, whose U-Net was trained on brain MRI, on polyps.

    Args:
        lr: of Adam, initially 1e-4 (section 3.5).
        penalty: lambda of the loss's third term, lambda x ||theta||^2 (section 3.4). The paper
            gives no value; 1e-5 is ours. Its gradient is 2 lambda theta, which is what torch's Adam
            adds for `weight_decay=2 * lambda`: the same updates, but the term is not in the loss
            that is logged. It is on every parameter, as in the formula.
        epochs: 50, in which the model converged (section 4).
        batch_size: 16 (section 3.5).
        size: 256 x 256 (section 3.2).
        factor: of the learning rate when the validation score stands still (section 3.5, without
            numbers); 0.1 is ours, torch's default.
        plateau_patience: epochs that are waited through before; 5 is ours.
        patience: of the early stopping (section 3.5, without numbers); 10 is ours.
        score: the validation score; the paper's mean Dice (section 3.5).

    Loss: binary cross-entropy + Dice with squared denominators (section 3.4, eq. 1 and 2), of each
    image. Images in [-1, 1] (section 3.2): give `create_model` `input_spec=recipe.input`.
    Augmentation: see `khadka2020_augmentation`. The paper freezes nothing.

    Source: Khadka 2020.

    Example:
        >>> recipe = khadka2020()
        >>> recipe.input.mean, recipe.input.std, recipe.schedule.mode
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 'max')
    """
    return Recipe(
        name="khadka2020",
        optimizer=partial(adam, lr=lr, weight_decay=2 * penalty, decay_norms_and_biases=True),
        schedule=plateau(factor=factor, patience=plateau_patience),
        loss=BCEDiceLoss,
        epochs=epochs,
        batch_size=batch_size,
        size=size,
        augment=khadka2020_augmentation(),
        input=InputSpec(channels=3, mean=(0.5,) * 3, std=(0.5,) * 3),
        score=score,
        patience=patience,
    )


def merand2021(
    *,
    lr: float = 1e-3,
    epochs: int = 100,
    batch_size: int = 32,
    size: int = 224,
    patience: int | None = 5,
    folds: int = 9,
    seed: int = 0,
    score: str = "mean_iou",
) -> Recipe:
    """Segmentation of few chest radiographs, validated by rotation.

    Args:
        lr: of Adam; optimizer, rate and cosine schedule are ours: the paper does not say.
        epochs: rounds of the rotation at most; 100 is ours (section 3.3: "to early stopping").
        batch_size: 32 is ours.
        size: 224 x 224 is ours.
        patience: of the early stopping (section 3.3, without numbers); 5 is ours.
        folds: nine partitions, drawn anew in every epoch (section 3.3).
        seed: of the partitions.
        score: what is reported, the mean IoU (Table 3); that it stops the training is ours.

    Loss: cross-entropy + Dice of the batch, absent classes left to the cross-entropy; ours.
    Augmentation: "mild blur, y-axis reflection and small rotations" (section 3.3): see
    `merand2021_augmentation`. examples/papers/merand2021.py trains its stages with this recipe.

    Source: Merand 2021, section 3.3.

    Example:
        >>> merand2021().folds
        RotatingKFold(folds=9, seed=0, by_group=True, reshuffle=True)
    """
    return Recipe(
        name="merand2021",
        optimizer=partial(adam, lr=lr),
        schedule=cosine(),
        loss=partial(BCEDiceLoss, per_image=False, empty="skip"),
        epochs=epochs,
        batch_size=batch_size,
        size=size,
        augment=merand2021_augmentation(),
        score=score,
        patience=patience,
        folds=RotatingKFold(folds, seed=seed),
    )


def modern(
    *,
    lr: float = 1e-3,
    layer_decay: float = 0.75,
    weight_decay: float = 0.05,
    warmup_steps: int | None = None,
    steps: int = 4_000,
    batch_size: int = 16,
    size: int = 256,
    crop: int | None = None,
    scale: tuple[float, float] = (0.5, 2.0),
    clip_norm: float = 1.0,
    precision: str = "bf16",
    auxiliary_weight: float = 0.4,
    ema_decay: float = 0.999,
) -> Recipe:
    """What we would begin with today for a pretrained encoder: all numbers are ours.

    Args:
        lr: of AdamW (Loshchilov & Hutter 2019), for decoder and head.
        layer_decay: factor of the learning rate from one layer of the encoder to the one below
            (Bao et al. 2022): pretrained layers near the image change least.
        weight_decay: decoupled; not on norms, biases and position embeddings.
        warmup_steps: of linear warm-up; a twentieth of `steps` when not given.
        steps: complete updates, over which half a cosine falls to 0 (Loshchilov & Hutter 2017).
        batch_size: images an update.
        size: to which images are resized.
        crop: of what trains; `size` when not given.
        scale: random factor before the crop; see `RandomScaleCrop`.
        clip_norm: largest norm of the gradient.
        precision: bfloat16, which needs no scaling of the loss; "no" is float32.
        auxiliary_weight: for models with an auxiliary head.
        ema_decay: of the average of the weights that is scored, with a smaller one at first.

    Loss: cross-entropy + Dice of the batch, absent classes left to the cross-entropy. Augmentation:
    random scale and crop, reflections along both axes, and `ColourJitter`; where up and down mean
    something (radiographs), give `replace(augment=...)`.

    Example:
        >>> recipe = modern(steps=400)
        >>> recipe.schedule, recipe.precision
        (Schedule(shape='cosine', warmup_steps=20, final=0.0, power=1.0), 'bf16')
    """
    warmup = round(steps / 20) if warmup_steps is None else warmup_steps
    return Recipe(
        name="modern",
        optimizer=partial(adamw, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay),
        schedule=cosine(warmup_steps=warmup),
        loss=partial(BCEDiceLoss, per_image=False, empty="skip"),
        steps=steps,
        batch_size=batch_size,
        size=size,
        augment=_modern_augment(size if crop is None else crop, scale),
        clip_norm=clip_norm,
        precision=precision,
        channels_last=True,
        auxiliary_weight=auxiliary_weight,
        ema_decay=ema_decay,
    )


def _modern_augment(crop: int, scale: tuple[float, float]) -> Augment:
    steps = (RandomScaleCrop(crop, scale=scale), flips_augmentation(), ColourJitter())
    return AugmentationChain(steps)


#: Recipes by name: functions of their numbers -> `Recipe`.
RECIPES: dict[str, Callable[..., Recipe]] = {
    "khadka2020": khadka2020,
    "merand2021": merand2021,
    "modern": modern,
    "zhou2022_adamw": zhou2022_adamw,
    "zhou2022_sgd": zhou2022_sgd,
}
