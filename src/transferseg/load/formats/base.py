"""What every format is (abstract): recognise a file, describe its model, name its tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from transferseg.load.findings import Findings
from transferseg.load.listing import Listing
from transferseg.spec import ModelSpec
from transferseg.transfer import SourceFormat

#: What stands in `Description.architecture` of a file that holds an encoder and nothing more.
ENCODER_ONLY = "encoder"


@dataclass(frozen=True)
class Description:
    """The model that a checkpoint's names and shapes describe.

    Attributes:
        architecture: of the spec, or `ENCODER_ONLY`; None for one that transferseg does not build.
        encoder: its name, None where several fit.
        classes: how many, 0 where there is no head.
        in_channels: that the first convolution reads.
        spec: what rebuilds the model; None where something is open or not built.
        candidates: encoders that fit equally well, where there are several.
        missing: why there is no spec, as the end of an error message.
    """

    architecture: str | None
    encoder: str | None = None
    classes: int = 0
    in_channels: int = 3
    spec: ModelSpec | None = None
    candidates: tuple[str, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Format(ABC):
    """An ecosystem whose checkpoints are recognised (abstract); one file and a line in `FORMATS`.

    Args:
        name: as it stands in reports.
    """

    name: str = field(init=False)

    @abstractmethod
    def detect(self, listing: Listing) -> bool:
        """Whether a checkpoint is of this ecosystem, from its names, shapes and metadata.

        The first of `FORMATS` that says so gets it; no error here, whatever the file holds.
        """

    @abstractmethod
    def describe(self, listing: Listing, findings: Findings) -> Description:
        """The model that it describes.

        What keys and shapes tell goes through `findings.fixed` (and `encoder`, `classes`), so that
        a keyword that contradicts them is refused; what they do not tell through `findings.open`,
        so that a keyword decides and the report says what was assumed.

        Raises:
            CheckpointError: a keyword contradicts the file.
        """

    @abstractmethod
    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:
        """How the file's keys become those of the model of this spec, all of them."""
