"""Transfer: names, shapes and tensors only; every tensor loaded, adapted or declared."""

from transferseg.transfer.adapters import (
    ADAPTERS,
    Adapter,
    ChannelAdapter,
    ClassRows,
    GatedSkipSlice,
    ZeroSkipSlice,
    class_rows,
)
from transferseg.transfer.api import transfer_weights
from transferseg.transfer.apply import apply_plan
from transferseg.transfer.files import read_spec
from transferseg.transfer.inert import TensorInfo
from transferseg.transfer.plan import Declarations, Move, TransferPlan, make_plan
from transferseg.transfer.reading import Contents, Listing, SourceWeights, read_listing, read_source
from transferseg.transfer.report import Coverage, TransferReport
from transferseg.transfer.sources import SOURCES, SourceFormat
from transferseg.transfer.starts import NeutralStart

__all__ = [
    "ADAPTERS",
    "SOURCES",
    "Adapter",
    "ChannelAdapter",
    "ClassRows",
    "Contents",
    "Coverage",
    "Declarations",
    "GatedSkipSlice",
    "Listing",
    "Move",
    "NeutralStart",
    "SourceFormat",
    "SourceWeights",
    "TensorInfo",
    "TransferPlan",
    "TransferReport",
    "ZeroSkipSlice",
    "apply_plan",
    "class_rows",
    "make_plan",
    "read_listing",
    "read_source",
    "read_spec",
    "transfer_weights",
]
