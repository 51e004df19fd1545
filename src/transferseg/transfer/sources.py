"""Whose names a source uses: the renaming to our own, and what of it is never needed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import Any

from transferseg.errors import TransferError
from transferseg.transfer import huggingface, self_supervised, smp_names
from transferseg.transfer.adapters import Adapter
from transferseg.transfer.naming import whole_name
from transferseg.transfer.openmmlab import COMPUTED, REORDERED, RULES, TELLING
from transferseg.transfer.torchvision_names import FAMILY_NAMES

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
            key, before `rename`; anchor them with `^`. A name that ends in "[i/n]" is that of part
            i, from 0, of a target that n tensors make, joined along the first axis.
        adapters: pattern on source keys -> how such a tensor becomes its target, whether or not the
            shapes differ.
        reasons: pattern on source keys that go nowhere -> why, for the report; beside `unused`.
        telling: patterns on source keys, one of which must be there for it to be recognised; none
            where the names that become the target's tell it.
        signs: patterns on source keys; only files with a key for each are of this scheme.
        wants: pattern on source keys, or on what is saved beside them ("arch=vit_small") ->
            arguments of timm's builder without which a target computes something else than such a
            network.

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
    signs: tuple[str, ...] = ()
    wants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def wanted(self, keys: Collection[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of timm's builder that such a network needs, of `wants`.

        Args:
            keys: of the source.
            metadata: what is saved beside them.
        """
        told = [*keys, *(f"{name}={v}" for name, v in metadata.items() if isinstance(v, str))]
        chosen = (
            arguments
            for pattern, arguments in self.wants.items()
            if any(fnmatchcase(one, pattern) for one in told)
        )
        return {name: value for arguments in chosen for name, value in arguments.items()}

    def check(
        self, keys: Collection[str], metadata: Mapping[str, Any], given: Mapping[str, Any]
    ) -> None:
        """Refuse a network that would compute something else in this target.

        Args:
            keys: of the source.
            metadata: what is saved beside them.
            given: the arguments that the target's encoder was built with.

        Raises:
            TransferError: it says which the target wants.
        """
        wanted = self.wanted(keys, metadata)
        if not wanted.items() <= given.items():
            raise TransferError(
                f"these are {self.name} names, of a network with {wanted}, which timm's "
                f"has not: give the target encoder_options={{'arguments': {wanted}}}, or it "
                "computes something else."
            )

    def may_name(self, keys: Collection[str]) -> bool:
        """Whether the keys have all of its signs, and something that tells it."""
        tells = not self.telling or any(fnmatchcase(k, p) for p in self.telling for k in keys)
        return tells and all(any(fnmatchcase(key, sign) for key in keys) for sign in self.signs)

    @cached_property
    def _any_rule(self) -> re.Pattern[str]:
        """What finds one of the rules' patterns; nothing for a format without rules."""
        return re.compile("|".join(f"(?:{pattern})" for pattern in self.rules) or "(?!)")

    def target_key(self, key: str) -> str:
        """The source key in our own names."""
        if self._any_rule.search(key):
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
        # the last norm goes with the head where no map goes through it
        unused=(*("fc.*", "classifier.*", "head.*", "head_dist.*", "pre_logits.*"), "norm.*"),
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
            *("backbone.ln?.*", "backbone.norm.*", "backbone.norm?.*", "backbone.decoder.*"),
        ),
        leave=("*.num_batches_tracked", *BESIDE),
        rules=RULES,
        adapters=REORDERED,
        reasons=COMPUTED,
        telling=TELLING,
    ),
    # The U-Net for brain MRI (Buda 2019), which is ours over the plain encoder.
    "brain": SourceFormat(
        "brain",
        {"conv.": "head."},
        rules={
            **{rf"^encoder{k}\.enc{k}": f"{ENCODER_PREFIX}stages.{k - 1}." for k in range(1, 5)},
            r"^bottleneck\.bottleneck": f"{ENCODER_PREFIX}stages.4.",
            r"^upconv(\d)\.": r"ups.\1.",
            r"^decoder(\d)\.dec\dconv(\d)\.": r"blocks.\1.conv\2.0.",
            r"^decoder(\d)\.dec\dnorm(\d)\.": r"blocks.\1.conv\2.1.",
            **{rf"^(ups|blocks)\.{k}\.": rf"decoder.\1.{4 - k}." for k in range(1, 5)},
        },
        leave=("*.num_batches_tracked",),
    ),
    # segmentation-models-pytorch: its own encoders stand behind `encoder.`, timm's ("tu-") behind
    # `encoder.model.`, where timm's wrapper makes `stages.0` into `stages_0`.
    "smp": SourceFormat(
        "smp",
        {"segmentation_head.0.": "head."},
        leave=("*.num_batches_tracked", *BESIDE),
        rules={
            r"^encoder\.(?!model\.)": ENCODER_PREFIX,
            r"^encoder\.model\.model\.": ENCODER_PREFIX,
            r"^encoder\.model\.([a-z]+)_(\d+)\.": rf"{ENCODER_PREFIX}\1.\2.",
            r"^encoder\.model\.features_(\w+)\.": rf"{ENCODER_PREFIX}features.\1.",
        },
        reasons=smp_names.REASONS,
    ),
    **{
        f"smp {family}": SourceFormat(
            f"smp {family}",
            {"segmentation_head.0.": "head."},
            leave=("*.num_batches_tracked", *BESIDE),
            rules=names.rules,
            reasons=smp_names.REASONS,
            signs=(names.sign,),
        )
        for family, names in smp_names.FAMILIES.items()
    },
    **{
        f"torchvision_{family}": SourceFormat(
            f"torchvision_{family}",
            {"": ENCODER_PREFIX},
            unused=("classifier.*", "heads.*", "head.*", "fc.*"),
            leave=("*.num_batches_tracked", *BESIDE),
            rules=names.rules,
            adapters=names.adapters,
            reasons=dict.fromkeys(names.recomputed, "a table that is computed again"),
            wants=names.wants,
        )
        for family, names in FAMILY_NAMES.items()
    },
    **{
        f"transformers {family}": SourceFormat(
            f"transformers {family}",
            {"": ENCODER_PREFIX},
            unused=("classifier.*",),
            leave=("*.num_batches_tracked", *BESIDE),
            rules=rules,
            adapters=huggingface.ADAPTERS.get(family, {}),
            reasons=huggingface.REASONS,
            wants=huggingface.WANTS.get(family, {}),
        )
        for family, rules in huggingface.FAMILIES.items()
    },
    **{
        name: SourceFormat(
            name,
            {"": ENCODER_PREFIX},
            leave=("*.num_batches_tracked", *BESIDE),
            rules=naming.rules,
            adapters=naming.adapters,
            reasons=naming.reasons,
            signs=naming.signs,
            wants=naming.wants,
        )
        for name, naming in self_supervised.NAMINGS.items()
    },
}


def detect(source_keys: Collection[str], target_keys: Collection[str]) -> SourceFormat | None:
    """The format under which most source keys become keys of the target, or None if none do.

    Of several with equally many the first that can say of most other keys why they go nowhere.

    Example:
        >>> detect(["conv1.weight"], ["encoder.model.conv1.weight"]).name
        'timm'
    """
    wanted = set(target_keys)
    hits = {
        name: sum(whole_name(known.target_key(key)) in wanted for key in source_keys)
        for name, known in SOURCES.items()
        if known.may_name(source_keys)
    }
    most = max(hits.values())
    if not most:
        return None
    best = [SOURCES[name] for name, count in hits.items() if count == most]
    told = [sum(known.why_unused(key) is not None for key in source_keys) for known in best]
    return best[told.index(max(told))]
