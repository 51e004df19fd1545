"""Formats by name; adding one = a file, a line here, a line in the docs."""

from transferseg.load.formats.base import ENCODER_ONLY, Description, Format
from transferseg.load.formats.brain import BrainFormat
from transferseg.load.formats.huggingface import HuggingFaceFormat
from transferseg.load.formats.mmpretrain import MMPretrainFormat
from transferseg.load.formats.mmseg import MMSegFormat
from transferseg.load.formats.own import OwnFormat
from transferseg.load.formats.self_supervised import SelfSupervisedFormat
from transferseg.load.formats.smp import SmpFormat
from transferseg.load.formats.timm import TimmFormat
from transferseg.load.formats.torchvision import TorchvisionFormat

__all__ = ["ENCODER_ONLY", "FORMATS", "Description", "Format"]

#: The ecosystems whose checkpoints are recognised; a file belongs to the first that detects it.
FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        OwnFormat(),
        MMSegFormat(),
        MMPretrainFormat(),
        BrainFormat(),
        SmpFormat(),
        HuggingFaceFormat(),
        SelfSupervisedFormat(),
        TorchvisionFormat(),
        TimmFormat(),  # last: its names are shared by files of others, which know more of them
    )
}
