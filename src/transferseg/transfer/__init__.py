"""Transfer: names, shapes and tensors only; every tensor loaded, adapted or declared."""

from transferseg.transfer.adapters import ADAPTERS, Adapter, class_rows, zero_skip_slice
from transferseg.transfer.api import transfer_weights
from transferseg.transfer.files import SourceWeights, read_source, read_spec
from transferseg.transfer.plan import Declarations, Move, TransferPlan, apply_plan, make_plan
from transferseg.transfer.report import Coverage, TransferReport
from transferseg.transfer.sources import SOURCES, SourceFormat

__all__ = [
    "ADAPTERS",
    "SOURCES",
    "Adapter",
    "Coverage",
    "Declarations",
    "Move",
    "SourceFormat",
    "SourceWeights",
    "TransferPlan",
    "TransferReport",
    "apply_plan",
    "class_rows",
    "make_plan",
    "read_source",
    "read_spec",
    "transfer_weights",
    "zero_skip_slice",
]
