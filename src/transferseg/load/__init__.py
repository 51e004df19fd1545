"""Load: any checkpoint file in, the model that it describes out."""

from transferseg.load.findings import Assumption, Findings
from transferseg.load.formats import FORMATS, Description, Format
from transferseg.load.inspection import CheckpointInfo, inspect_checkpoint
from transferseg.load.listing import Listing, read_listing
from transferseg.load.loading import load_checkpoint

__all__ = [
    "FORMATS",
    "Assumption",
    "CheckpointInfo",
    "Description",
    "Findings",
    "Format",
    "Listing",
    "inspect_checkpoint",
    "load_checkpoint",
    "read_listing",
]
