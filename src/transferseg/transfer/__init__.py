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
from transferseg.transfer.folding import FoldedInput, fold_input
from transferseg.transfer.inert import TensorInfo
from transferseg.transfer.plan import Declarations, Move, TransferPlan, make_plan
from transferseg.transfer.reading import Contents, Listing, SourceWeights, read_listing, read_source
from transferseg.transfer.report import Coverage, TransferReport
from transferseg.transfer.resampling import (
    PatchSize,
    PositionGrid,
    RelativePositionTable,
    size_adapters,
)
from transferseg.transfer.sources import SOURCES, SourceFormat
from transferseg.transfer.starts import NeutralStart
from transferseg.transfer.suggesting import RuleSuggestion, SuggestedRule, suggest_rules

__all__ = [
    "ADAPTERS",
    "SOURCES",
    "Adapter",
    "ChannelAdapter",
    "ClassRows",
    "Contents",
    "Coverage",
    "Declarations",
    "FoldedInput",
    "GatedSkipSlice",
    "Listing",
    "Move",
    "NeutralStart",
    "PatchSize",
    "PositionGrid",
    "RelativePositionTable",
    "RuleSuggestion",
    "SourceFormat",
    "SourceWeights",
    "SuggestedRule",
    "TensorInfo",
    "TransferPlan",
    "TransferReport",
    "ZeroSkipSlice",
    "apply_plan",
    "class_rows",
    "fold_input",
    "make_plan",
    "read_listing",
    "read_source",
    "read_spec",
    "size_adapters",
    "suggest_rules",
    "transfer_weights",
]
