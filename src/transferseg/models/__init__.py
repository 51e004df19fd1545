"""Models: one encoder class over timm, decoders by name, and what is built of them."""

from transferseg.models.autoencoder import Autoencoder
from transferseg.models.auxiliary import AuxiliaryHead
from transferseg.models.classifier import Classifier
from transferseg.models.create import (
    create_autoencoder,
    create_classifier,
    create_model,
    list_architectures,
)
from transferseg.models.decoders import DECODERS
from transferseg.models.encoders import (
    Encoder,
    EncoderCapabilities,
    encoder_capabilities,
    list_encoders,
)
from transferseg.models.freezing import Freezable, Unfreezing, freeze, frozen, unfreeze
from transferseg.models.pyramid import PYRAMIDS
from transferseg.models.segmenter import Segmenter
from transferseg.models.summary import ModelSummary, PartSummary

__all__ = [
    "DECODERS",
    "PYRAMIDS",
    "Autoencoder",
    "AuxiliaryHead",
    "Classifier",
    "Encoder",
    "EncoderCapabilities",
    "Freezable",
    "ModelSummary",
    "PartSummary",
    "Segmenter",
    "Unfreezing",
    "create_autoencoder",
    "create_classifier",
    "create_model",
    "encoder_capabilities",
    "freeze",
    "frozen",
    "list_architectures",
    "list_encoders",
    "unfreeze",
]
