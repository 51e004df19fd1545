"""Losses: plain functions of logits and target, and modules that keep their options."""

from transferseg.losses.bce_dice import BCEDiceLoss, bce_dice_loss, bce_dice_terms
from transferseg.losses.classification import (
    MulticlassLoss,
    MultilabelLoss,
    multiclass_loss,
    multilabel_loss,
)
from transferseg.losses.distribution import binary_cross_entropy, cross_entropy
from transferseg.losses.reconstruction import ReconstructionLoss, reconstruction_loss
from transferseg.losses.region import dice_loss, mean_dice_loss

__all__ = [
    "BCEDiceLoss",
    "MulticlassLoss",
    "MultilabelLoss",
    "ReconstructionLoss",
    "bce_dice_loss",
    "bce_dice_terms",
    "binary_cross_entropy",
    "cross_entropy",
    "dice_loss",
    "mean_dice_loss",
    "multiclass_loss",
    "multilabel_loss",
    "reconstruction_loss",
]
