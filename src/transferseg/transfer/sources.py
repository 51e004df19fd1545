"""Whose names a source uses: the renaming to our own, and what of it is never needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

ENCODER_PREFIX = "encoder.model."
#: What an encoder has beside timm's model: a ViT's pyramid, the norms of Swin's maps.
BESIDE = ("encoder.pyramid.*", "encoder.norms.*")
#: The parts of our own models, by the first component of their keys.
PARTS = ("encoder", "decoder", "head", "auxiliary_head")


@dataclass(frozen=True)
class SourceFormat:
    """A naming scheme of checkpoints.

    Attributes:
        name: as it stands in the report.
        rename: prefix -> prefix, tried in order on every source key; the first that fits is used.
        unused: patterns on source keys that a segmentation model never needs.
        leave: patterns on target keys that such files may lack.
    """

    name: str
    rename: Mapping[str, str]
    unused: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()

    def target_key(self, key: str) -> str:
        """The source key in our own names."""
        for old, new in self.rename.items():
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key


#: The formats that `transfer_weights` recognises, tried in this order.
SOURCES: dict[str, SourceFormat] = {
    # What stands beside timm's model is in no file of timm's, and in our own only where the model
    # had it: a pyramid under a decoder that read it, norms in the style of MMSegmentation.
    "transferseg": SourceFormat("transferseg", {}, leave=BESIDE),
    # timm's names, which are torchvision's for ResNet, ResNeXt and VGG's features. Files written
    # before PyTorch 0.4.1 have no num_batches_tracked.
    "timm": SourceFormat(
        "timm",
        {"": ENCODER_PREFIX},
        unused=("fc.*", "classifier.*", "head.*", "head_dist.*", "pre_logits.*"),
        leave=("*.num_batches_tracked", *BESIDE),
    ),
}


def detect(source_keys: Collection[str], target_keys: Collection[str]) -> SourceFormat | None:
    """The format under which most source keys become keys of the target, or None if none do.

    Example:
        >>> detect(["conv1.weight"], ["encoder.model.conv1.weight"]).name
        'timm'
    """
    wanted = set(target_keys)
    hits = {
        name: sum(source_format.target_key(key) in wanted for key in source_keys)
        for name, source_format in SOURCES.items()
    }
    best = max(hits, key=lambda name: hits[name])
    return SOURCES[best] if hits[best] else None
