"""The chains of Merand & Klein 2021: none, one or two steps of pretraining before few labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from transferseg.errors import SpecError, unknown_name
from transferseg.stages import (
    Classify,
    ModelRecipe,
    Reconstruct,
    Segment,
    SegmentBoxes,
    Stage,
    StageData,
    Task,
    TrainingRecipe,
)

#: How a chain begins, in the order of the paper's Table 3 from the bottom up.
PRETRAININGS: Final = (
    "none",
    "1-step boxes",
    "1-step classifier",
    "1-step autoencoder",
    "2-step classifier",
    "2-step autoencoder",
)

#: What is taken from the first step: the encoder, or encoder and decoder (autoencoder -> U-Net).
TAKEN: Final[Mapping[str, tuple[str, ...]]] = {
    "encoder": ("encoder",),
    "both": ("encoder", "decoder"),
}

_STEPS = ("classifier", "autoencoder", "boxes", "target")


@dataclass(frozen=True)
class Initial:
    """Weights to begin with instead of random ones.

    Attributes:
        encoder: backbone -> "default", a timm tag, or a checkpoint's path; see `create_model`.
        decoder: (architecture, backbone) -> a checkpoint whose decoder is taken, if there is one.

    Example:
        >>> Initial({"resnet50": "default"}).encoder["resnet50"]
        'default'
    """

    encoder: Mapping[str, str | os.PathLike[str]] = field(default_factory=dict)
    decoder: Mapping[tuple[str, str], str | os.PathLike[str]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TwoStep:
    """Builds the stage chains of the paper's grid; `stage` is made for `Study.grid`.

    The first step learns from many images that are labelled as a whole (classifier) or not at all
    (autoencoder), the second from boxes painted as masks, the last from the few masks that count.
    From the boxes to the target the whole network moves but its head, as in the paper ("the exact
    same networks are trained").

    Attributes:
        target: the few masks; its scores are compared.
        boxes: a reader of boxes, for the steps on boxes.
        labels: labelled images, for the classifier.
        images: any images, for the autoencoder; the labelled ones if not given.
        training: recipes by step ("classifier", "autoencoder", "boxes", "target").
        in_channels: of every model.
        initial: name on the axis `initialisation` -> weights; "random" is always there.
        output_stride: by architecture, where it is not to be the default.
        options: decoder options by architecture; those of "unet" are the autoencoder's too.
        tasks: by step, where they are not to be the usual ones.
        pretraining_seed: seed of the stages before the target, so that runs with other seeds
            share them; None gives each run its own.

    Example:
        >>> from transferseg.data import SyntheticRadiographs
        >>> parts = {"train": (0, 1), "test": (2, 3)}
        >>> data = StageData(SyntheticRadiographs(4, size=64), parts, 32)
        >>> chains = TwoStep(target=data, images=data, in_channels=1)
        >>> last = chains.stage(pretraining="1-step autoencoder", parts="both", architecture="unet",
        ...                     backbone="test_resnet", seed=0)
        >>> [stage.name for stage in last.chain]
        ['autoencoder-test_resnet', 'unet-test_resnet']
        >>> chains.stage(pretraining="none", parts="both", architecture="unet",
        ...              backbone="test_resnet", seed=0) is None
        True
    """

    target: StageData
    boxes: StageData | None = None
    labels: StageData | None = None
    images: StageData | None = None
    training: Mapping[str, TrainingRecipe] = field(default_factory=dict)
    in_channels: int = 1
    initial: Mapping[str, Initial] = field(default_factory=dict)
    output_stride: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    pretraining_seed: int | None = None

    def __post_init__(self) -> None:
        for given in (self.training, self.tasks):
            for step in given:
                if step not in _STEPS:
                    raise SpecError(unknown_name("step", step, _STEPS))

    def stage(
        self,
        *,
        pretraining: str,
        architecture: str,
        backbone: str,
        seed: int,
        parts: str = "encoder",
        initialisation: str = "random",
    ) -> Stage | None:
        """The last stage of one chain; None where the paper's grid has no such cell.

        Decoders move only from an autoencoder to a U-Net, whose decoder it has; an initialisation
        without weights for the backbone is no cell.

        Args:
            pretraining: a name in `PRETRAININGS`.
            architecture: of the segmentation stages.
            backbone: the encoder of all stages.
            seed: of the target stage (and of the others: see `pretraining_seed`).
            parts: "encoder" or "both".
            initialisation: "random" or a name in `initial`.
        """
        for kind, name, known in (
            ("pretraining", pretraining, PRETRAININGS),
            ("parts", parts, TAKEN),
            ("initialisation", initialisation, ("random", *self.initial)),
        ):
            if name not in known:
                raise SpecError(unknown_name(kind, name, known))
        if parts == "both" and not ("autoencoder" in pretraining and architecture == "unet"):
            return None
        start = self.initial.get(initialisation, Initial())
        if initialisation != "random" and backbone not in start.encoder:
            return None
        model = ModelRecipe(
            backbone,
            architecture,
            in_channels=self.in_channels,
            weights=start.encoder.get(backbone),
            decoder_weights=start.decoder.get((architecture, backbone)),
            output_stride=self.output_stride.get(architecture),
            options=self.options.get(architecture, {}),
        )
        earlier = seed if self.pretraining_seed is None else self.pretraining_seed
        steps, _, source = pretraining.partition(" ")
        parent, taken = None, TAKEN[parts]
        if source in ("classifier", "autoencoder"):
            parent = self._first(source, model, earlier)
        if steps == "2-step" or source == "boxes":
            parent = self._segment("boxes", model, parent, taken, earlier)
            taken = TAKEN["both"]
        return self._segment("target", model, parent, taken, seed)

    def _first(self, step: str, model: ModelRecipe, seed: int) -> Stage:
        """The classifier or the autoencoder, which know no segmentation architecture."""
        data = self.labels if step == "classifier" else self.images or self.labels
        options = self.options.get("unet", {}) if step == "autoencoder" else {}
        bare = model.replace(
            architecture="unet", decoder_weights=None, output_stride=None, options=options
        )
        return Stage(
            f"{step}-{model.encoder}",
            task=self.tasks.get(step) or (Classify() if step == "classifier" else Reconstruct()),
            data=_given(data, "labels" if step == "classifier" else "images", step),
            model=bare,
            training=self.training.get(step, TrainingRecipe()),
            seed=seed,
        )

    def _segment(
        self,
        step: str,
        model: ModelRecipe,
        parent: Stage | None,
        taken: tuple[str, ...],
        seed: int,
    ) -> Stage:
        data = self.boxes if step == "boxes" else self.target
        short = model.architecture if step == "target" else f"boxes-{model.architecture}"
        return Stage(
            f"{short}-{model.encoder}",
            task=self.tasks.get(step) or (SegmentBoxes() if step == "boxes" else Segment()),
            data=_given(data, "boxes", step),
            model=model,
            training=self.training.get(step, TrainingRecipe()),
            parent=parent,
            parts=taken if parent is not None else ("encoder",),
            seed=seed,
        )


def _given(data: StageData | None, name: str, step: str) -> StageData:
    if data is None:
        raise SpecError(f"the step {step!r} needs data: give TwoStep({name}=...).")
    return data
