"""Whose names a source uses: the renaming to our own, and what of it is never needed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache

from transferseg.errors import TransferError
from transferseg.transfer.adapters import Adapter
from transferseg.transfer.openmmlab import COMPUTED, REORDERED, RULES, TELLING
from transferseg.transfer.torchvision import FAMILIES, REFUSED, Flatten

ENCODER_PREFIX = "encoder.model."
#: What an encoder has beside timm's model: a ViT's pyramid, the norms of Swin's maps.
BESIDE = ("encoder.pyramid.*", "encoder.norms.*")
#: The parts of our own models, by the first component of their keys.
PARTS = ("encoder", "decoder", "head", "auxiliary_head")


@dataclass(frozen=True)
class SourceFormat:
    r"""A naming scheme of checkpoints.

    Attributes:
        name: as it stands in the report.
        rename: prefix -> prefix, tried in order on every source key; the first that fits is used.
        unused: patterns on source keys that a segmentation model never needs.
        leave: patterns on target keys that such files may lack.
        rules: regular expression -> replacement, each applied in turn wherever it is found in a
            key, before `rename`; anchor them with `^`.
        adapters: pattern on source keys -> how such a tensor becomes its target, whether or not the
            shapes differ.
        reasons: pattern on source keys that go nowhere -> why, for the report; beside `unused`.
        telling: patterns on source keys, one of which must be there for it to be recognised; none
            where the names that become the target's tell it.
        refused: pattern on source keys -> why a network that has one computes something else than
            the target would.

    Example:
        >>> moco = SourceFormat("moco", {"": ENCODER_PREFIX}, rules={r"^encoder_q\.": ""})
        >>> moco.target_key("encoder_q.conv1.weight")
        'encoder.model.conv1.weight'
    """

    name: str
    rename: Mapping[str, str]
    unused: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    rules: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    telling: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def check(self, keys: Collection[str]) -> None:
        """Refuse a network that has these names and computes something else.

        Raises:
            TransferError: it says what.
        """
        for pattern, why in self.refused.items():
            if any(fnmatchcase(key, pattern) for key in keys):
                raise TransferError(f"these are {self.name} names, but {why}.")

    def may_be(self, keys: Collection[str]) -> bool:
        """Whether source keys have what tells it."""
        return not self.telling or any(fnmatchcase(k, p) for p in self.telling for k in keys)

    def target_key(self, key: str) -> str:
        """The source key in our own names."""
        for pattern, replacement in self.rules.items():
            key = _compiled(pattern).sub(replacement, key)
        for old, new in self.rename.items():
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key

    def adapter_for(self, key: str) -> Adapter | None:
        """How the tensor of a source key is changed, or None when it is taken as it is."""
        fitting = (a for pattern, a in self.adapters.items() if fnmatchcase(key, pattern))
        return next(fitting, None)

    def why_unused(self, key: str) -> str | None:
        """Why a source key goes nowhere, or None when nothing declares it."""
        for pattern, reason in self.reasons.items():
            if fnmatchcase(key, pattern):
                return f"{reason}: {pattern}"
        for pattern in self.unused:
            if fnmatchcase(key, pattern):
                return f"{self.name} table: {pattern}"
        return None


@cache  # torch's own patterns and those of the tables together are more than re remembers
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


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
    # The encoders of MMSegmentation's and MMPretrain's files; their heads are read by
    # `load_checkpoint`.
    "openmmlab": SourceFormat(
        "openmmlab",
        {
            "backbone.": ENCODER_PREFIX,
            **{f"{part}.": f"{part}." for part in PARTS},  # some have become ours by the rules
            "": ENCODER_PREFIX,
        },
        unused=(
            *("decode_head.*", "auxiliary_head.*", "neck.*", "head.*", "fc.*"),
            *("backbone.ln1.*", "backbone.norm?.*", "backbone.decoder.*"),
        ),
        leave=("*.num_batches_tracked", *BESIDE),
        rules=RULES,
        adapters=REORDERED,
        reasons=COMPUTED,
        telling=TELLING,
    ),
    **{
        f"torchvision {family}": SourceFormat(
            f"torchvision {family}",
            {"": ENCODER_PREFIX},
            leave=("*.num_batches_tracked", *BESIDE),
            rules=rules,
            adapters={"*.layer_scale": Flatten()},
            reasons={"*.relative_position_index": "a table that is computed again"},
            refused=REFUSED.get(family, {}),
        )
        for family, rules in FAMILIES.items()
    },
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
        if source_format.may_be(source_keys)
    }
    best = max(hits, key=lambda name: hits[name])
    return SOURCES[best] if hits[best] else None
