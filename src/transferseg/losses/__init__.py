"""Losses: plain functions of logits and target, and modules that keep their options."""

from transferseg.losses.bce_dice import BCEDiceLoss, bce_dice_loss, bce_dice_terms
from transferseg.losses.boundary import boundary_loss, signed_distances
from transferseg.losses.classification import (
    MulticlassLoss,
    MultilabelLoss,
    multiclass_loss,
    multilabel_loss,
)
from transferseg.losses.distribution import binary_cross_entropy, cross_entropy
from transferseg.losses.focal import focal_loss
from transferseg.losses.lovasz import lovasz_loss
from transferseg.losses.modules import (
    LOSSES,
    BoundaryLoss,
    FocalLoss,
    LovaszLoss,
)
from transferseg.losses.reconstruction import (
    ReconstructionLoss,
    reconstruction_loss,
    structural_similarity,
)
from transferseg.losses.region import dice_loss, jaccard_loss, mean_dice_loss
from transferseg.losses.region_modules import (
    DiceLoss,
    FocalTverskyLoss,
    JaccardLoss,
    TverskyLoss,
)
from transferseg.losses.supervision import DeepSupervisionLoss
from transferseg.losses.tversky import focal_tversky_loss, tversky_loss

__all__ = [
    "LOSSES",
    "BCEDiceLoss",
    "BoundaryLoss",
    "DeepSupervisionLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "JaccardLoss",
    "LovaszLoss",
    "MulticlassLoss",
    "MultilabelLoss",
    "ReconstructionLoss",
    "TverskyLoss",
    "bce_dice_loss",
    "bce_dice_terms",
    "binary_cross_entropy",
    "boundary_loss",
    "cross_entropy",
    "dice_loss",
    "focal_loss",
    "focal_tversky_loss",
    "jaccard_loss",
    "lovasz_loss",
    "mean_dice_loss",
    "multiclass_loss",
    "multilabel_loss",
    "reconstruction_loss",
    "signed_distances",
    "structural_similarity",
    "tversky_loss",
]
