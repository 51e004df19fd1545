"""What a stage can learn: each task is one small frozen object, and a user's own is another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, runtime_checkable

from transferseg.data import BoxReader, Reader, SelectedClasses, original
from transferseg.errors import DataError
from transferseg.losses import BCEDiceLoss, MulticlassLoss, MultilabelLoss, ReconstructionLoss
from transferseg.metrics import (
    MulticlassCounts,
    MultilabelCounts,
    ReconstructionError,
    SegmentationCounts,
)
from transferseg.models import create_autoencoder, create_classifier, create_model
from transferseg.models.base import SpecModel
from transferseg.spec import InputSpec, ModelSpec
from transferseg.stages.recipes import ModelRecipe
from transferseg.training import Loss, Metric
from transferseg.training.judge import better
from transferseg.types import Target


@runtime_checkable
class Task(Protocol):
    """What a stage learns. A task of one's own is a frozen dataclass with these members."""

    @property
    def target(self) -> Target:
        """What the output is compared with: "mask", "label" or "image"."""
        ...

    def reader(self, reader: Reader) -> Reader:
        """The data as this task sees them; the reader itself, or a view of it."""
        ...

    def build(self, model: ModelRecipe, reader: Reader, input: InputSpec | None) -> SpecModel:
        """A new model for data of this reader; `input` is the parent's, if there is one."""
        ...

    def make_loss(self, spec: ModelSpec) -> Loss:
        """What training minimises."""
        ...

    def make_metrics(self, spec: ModelSpec) -> Metric[Any] | None:
        """What is measured on validation and test images; None measures the loss alone."""
        ...

    def best(self, spec: ModelSpec) -> tuple[str, Literal["max", "min"]]:
        """The score that chooses the best epoch, and which way it is better.

        The score is a name among the metrics' scores, `loss`, or `loss_` and a term of the loss.
        """
        ...


@dataclass(frozen=True)
class Segment:
    """Segment the reader's classes.

    Attributes:
        classes: some of the reader's, in the order wanted; None for all.
        loss: (logits, mask) -> scalar; by default `BCEDiceLoss` with Dice over the batch, absent
            classes left to the cross-entropy.
        score: of `SegmentationCounts`, pooled.

    Example:
        >>> from transferseg.data import SyntheticRadiographs
        >>> reader = SyntheticRadiographs(2, size=64)
        >>> model = Segment().build(ModelRecipe("test_resnet", in_channels=1), reader, None)
        >>> model.spec.classes == reader.classes
        True
    """

    classes: Sequence[str] | None = None
    loss: Loss | None = None
    score: str = "mean_iou"
    target: Target = "mask"

    def reader(self, reader: Reader) -> Reader:
        """The reader, with the chosen classes."""
        chosen = None if self.classes is None else tuple(self.classes)
        return reader if chosen in (None, reader.classes) else SelectedClasses(reader, chosen)

    def build(self, model: ModelRecipe, reader: Reader, input: InputSpec | None) -> SpecModel:
        """A segmentation model."""
        if not reader.classes:
            raise DataError("the reader has no classes, so there is nothing to segment.")
        options = {**model.segmentation(), "input_spec": model.input_spec or input}
        return create_model(
            model.architecture, model.encoder, classes=reader.classes, mode=reader.mode, **options
        )

    def make_loss(self, spec: ModelSpec) -> Loss:
        """The given loss, or BCE + Dice."""
        if self.loss is not None:
            return self.loss
        return BCEDiceLoss(spec.mode, per_image=False, empty="skip")

    def make_metrics(self, spec: ModelSpec) -> Metric[Any]:
        """Counts of the classes."""
        return SegmentationCounts(spec.classes, mode=spec.mode, threshold=spec.threshold)

    def best(self, spec: ModelSpec) -> tuple[str, Literal["max", "min"]]:  # noqa: ARG002
        """The chosen score; losses fall, all others rise."""
        return self.score, better(self.score)


@dataclass(frozen=True)
class SegmentBoxes(Segment):
    """Segment bounding boxes that are painted as masks (Merand 2021, section 3.3).

    The reader decides how a box is painted (`shape`, `overlap` of the box readers); this task
    refuses a reader without boxes, so that a lineage that says boxes means boxes.

    Example:
        >>> from transferseg.data import SyntheticRadiographs
        >>> reader = SyntheticRadiographs(2, size=64, task="boxes")
        >>> SegmentBoxes().reader(reader) is reader
        True
    """

    def reader(self, reader: Reader) -> Reader:
        """The reader, once it is known to have boxes."""
        if not isinstance(original(reader), BoxReader):
            raise DataError(
                f"{type(original(reader)).__name__} has no boxes(index): give a reader of boxes "
                "(COCOBoxes, SIIMCovid19, NIHChestXray14Boxes), or the task Segment."
            )
        return super().reader(reader)


@dataclass(frozen=True)
class Classify:
    """Tell the reader's labels: several an image (missing ones allowed), or exactly one.

    Attributes:
        loss: (logits, label) -> scalar; by default binary cross-entropy over the known labels
            (multilabel), cross-entropy (multiclass).
        score: of `MultilabelCounts` ("mean_auroc", "exact_match", "mean_accuracy") or of
            `MulticlassCounts` ("accuracy", "mean_recall"); by default "mean_auroc" or "accuracy".
            Merand 2021 counts exact matches.

    Example:
        >>> Classify(score="exact_match").target
        'label'
    """

    loss: Loss | None = None
    score: str | None = None
    target: Target = "label"

    def reader(self, reader: Reader) -> Reader:
        """The reader as it is."""
        return reader

    def build(self, model: ModelRecipe, reader: Reader, input: InputSpec | None) -> SpecModel:
        """A classifier."""
        options = {**model.common(), "input_spec": model.input_spec or input}
        return create_classifier(model.encoder, classes=reader.classes, mode=reader.mode, **options)

    def make_loss(self, spec: ModelSpec) -> Loss:
        """The given loss, or cross-entropy as the labels ask for it."""
        if self.loss is not None:
            return self.loss
        return MulticlassLoss() if spec.mode == "multiclass" else MultilabelLoss()

    def make_metrics(self, spec: ModelSpec) -> Metric[Any]:
        """Counts of the labels."""
        if spec.mode == "multiclass":
            return MulticlassCounts(spec.classes)
        return MultilabelCounts(spec.classes, threshold=spec.threshold)

    def best(self, spec: ModelSpec) -> tuple[str, Literal["max", "min"]]:
        """The chosen score, or what the kind of labels suggests."""
        score = self.score or ("accuracy" if spec.mode == "multiclass" else "mean_auroc")
        return score, better(score)


@dataclass(frozen=True)
class Reconstruct:
    """Give the image back: an autoencoder, which needs no labels.

    Attributes:
        loss: (output, image) -> scalar; by default the mean squared error.
        score: of `ReconstructionError`, "l1" or "l2".

    Example:
        >>> Reconstruct().target
        'image'
    """

    loss: Loss | None = None
    score: str = "l2"
    target: Target = "image"

    def reader(self, reader: Reader) -> Reader:
        """The reader as it is."""
        return reader

    def build(self, model: ModelRecipe, reader: Reader, input: InputSpec | None) -> SpecModel:  # noqa: ARG002
        """An autoencoder."""
        options = {**model.common(), "input_spec": model.input_spec or input}
        return create_autoencoder(model.encoder, **options)

    def make_loss(self, spec: ModelSpec) -> Loss:  # noqa: ARG002
        """The given loss, or the mean squared error."""
        return self.loss or ReconstructionLoss("l2")

    def make_metrics(self, spec: ModelSpec) -> Metric[Any]:  # noqa: ARG002
        """The reconstruction error."""
        return ReconstructionError()

    def best(self, spec: ModelSpec) -> tuple[str, Literal["max", "min"]]:  # noqa: ARG002
        """The chosen error, which falls."""
        return self.score, "min"


#: The tasks by name; a user's own needs no entry.
TASKS: Final[Mapping[str, type]] = MappingProxyType(
    {
        "classify": Classify,
        "reconstruct": Reconstruct,
        "segment": Segment,
        "segment_boxes": SegmentBoxes,
    }
)
