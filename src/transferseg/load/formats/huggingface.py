"""Hugging Face transformers: ViT, DINOv2, Swin, ConvNeXt and ResNet, and UPerNet over the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transferseg.load.findings import Findings
from transferseg.load.formats import renamed
from transferseg.load.formats.base import ENCODER_ONLY, Description, Format
from transferseg.load.formats.renamed import Build
from transferseg.load.listing import Listing, Shape
from transferseg.spec import InputSpec, ModelSpec
from transferseg.transfer import SOURCES, SourceFormat
from transferseg.transfer.huggingface import FAMILIES
from transferseg.transfer.sources import ENCODER_PREFIX

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
#: Where a backbone's names begin: behind its model's, or behind UPerNet's backbone.
BEGINNINGS = ("", "backbone.", "backbone.swin.", *(f"{family}." for family in FAMILIES))
#: family -> a pattern of keys that together only it has, behind a beginning.
SIGNS: Mapping[str, tuple[str, ...]] = {
    "resnet": ("embedder.embedder.convolution.weight",),
    "convnext": ("embeddings.layernorm.weight", "embeddings.patch_embeddings.weight"),
    "swin": ("embeddings.norm.weight", "embeddings.patch_embeddings.projection.weight"),
    "dinov2_with_registers": ("embeddings.register_tokens", "embeddings.position_embeddings"),
    "dinov2": ("embeddings.position_embeddings", "encoder.layer.0.layer_scale1.lambda1"),
    "vit": ("embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight"),
}
#: Settings of a config that change what is computed, family by family -> the value that is read.
#: A file without a config is taken to have it, which is what transformers' configs begin with.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "resnet": {
        "hidden_act": "relu", "downsample_in_bottleneck": False, "downsample_in_first_stage": False,
        "embedding_size": 64,
    },
    "convnext": {"hidden_act": "gelu", "num_stages": 4},
    "swin": {"hidden_act": "gelu", "use_absolute_embeddings": False},
    "dinov2": {"hidden_act": "gelu"},
    "dinov2_with_registers": {"hidden_act": "gelu"},
    "vit": {"hidden_act": "gelu"},
}  # fmt: skip
#: family -> epsilon of its layer norms where no config says, and timm's.
EPSILONS: Mapping[str, tuple[float, float]] = {
    "convnext": (1e-12, 1e-6),
    "swin": (1e-5, 1e-5),
    "dinov2": (1e-6, 1e-6),
    "dinov2_with_registers": (1e-6, 1e-6),
    "vit": (1e-12, 1e-6),
}
#: family -> the modules that have this epsilon; the others keep torch's, which timm has too.
NORMS: Mapping[str, tuple[str, ...]] = {
    "convnext": ("head.norm",),
    "swin": ("*.norm1", "*.norm2", "norm"),
    "dinov2": ("*",),
    "dinov2_with_registers": ("*",),
    "vit": ("*",),
}
HEAD_WIDTH = 64
UPERNET = {
    "decode_head.psp_modules.": "decoder.pooling.pools.",
    "decode_head.bottleneck.": "decoder.pooling.bottleneck.",
    "decode_head.lateral_convs.": "decoder.laterals.",
    "decode_head.fpn_convs.": "decoder.convs.",
    "decode_head.fpn_bottleneck.": "decoder.bottleneck.",
    "decode_head.classifier.": "head.",
    "auxiliary_head.classifier.": "auxiliary_head.head.",
    "auxiliary_head.conv_cat.": "auxiliary_head.decoder.concat.",
    "auxiliary_head.": "auxiliary_head.decoder.",
}
UPERNET_SIGN = "decode_head.fpn_bottleneck.batch_norm.weight"


@dataclass(frozen=True)
class HuggingFaceFormat(Format):
    """Folders of `save_pretrained`, sharded or not, and files of the same names."""

    name: str = field(default="huggingface", init=False)

    def detect(self, listing: Listing) -> bool:
        """The names of one of its families, or of UPerNet over any backbone."""
        return _family(listing) is not None or listing.has(UPERNET_SIGN)

    def describe(self, listing: Listing, findings: Findings) -> Description:
        """A classifier, UPerNet, or an encoder alone."""
        config = _config(listing)
        family, told = _family(listing), config.get("model_type")
        if family is None or told not in (None, *FAMILIES):
            return Description(None, missing=f"transformers' {told or 'backbone'} is not read")
        if problem := _problem(listing, family, config):
            return Description(None, missing=f"transformers' {family} {problem}, is not read")
        shapes = _shapes(listing, family)
        try:
            found = _Found(family, config, shapes, _build(family, shapes, config, findings))
        except KeyError as error:
            return Description(None, missing=f"it lacks {error.args[0]!r}, in timm's names")
        if listing.has(UPERNET_SIGN):
            return _upernet(listing, findings, found)
        return _classifier(listing, findings, found)

    def naming(self, listing: Listing, spec: ModelSpec) -> SourceFormat:
        """The encoder's names become timm's, those of the heads ours."""
        family = _family(listing)
        assert family is not None  # detect() and describe() said so
        scheme = replace(SOURCES[f"transformers {family}"], name=self.name, unused=())
        if spec.architecture == "classifier":
            heads = {} if spec.decoder.get("head") == "timm" else {"fc.": "head."}
            return replace(scheme, rename={**heads, "": ENCODER_PREFIX})
        return _upernet_naming(scheme)


@dataclass(frozen=True)
class _Found:
    """What is known of a file's backbone."""

    family: str
    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    build: Build

    @property
    def channels(self) -> int:
        """That the first convolution reads."""
        stems = ("conv1.weight", "stem.0.weight", "patch_embed.proj.weight")
        return next(self.shapes[key][1] for key in stems if key in self.shapes)

    def encoder_options(
        self, findings: Findings, *, whole: bool = False, style: str = ""
    ) -> dict[str, Any]:
        """Of an encoder, or of a whole classifier."""
        options: dict[str, Any] = {"arguments": self.build[1]} if self.build[1] else {}
        if style:
            options["style"] = style
        if norms := _norm_eps(self, findings, whole=whole):
            options["norm_eps"] = norms
        return options


def _family(listing: Listing) -> str | None:
    for family, keys in SIGNS.items():
        if any(listing.has(*(begin + key for key in keys)) for begin in BEGINNINGS):
            return family
    return None


def _config(listing: Listing) -> Mapping[str, Any]:
    """Of the backbone."""
    inner = listing.config().get("backbone_config", listing.config())
    return inner if isinstance(inner, Mapping) else {}


def _problem(listing: Listing, family: str, config: Mapping[str, Any]) -> str | None:
    """What of a file changes what its names compute, or has no place in timm's model."""
    for setting, value in SETTINGS[family].items():
        if config.get(setting, value) != value:
            return f"with {setting}={config[setting]!r}"
    tokens = [key for key in listing.shapes if key.endswith("distillation_token")]
    if tokens:
        return f"with {tokens[0]!r}"
    if family == "swin" and any("position_embeddings" in key for key in listing.shapes):
        return "with absolute positions"
    if family == "convnext" and not any("layer_scale" in key for key in listing.shapes):
        return "without layer scale"
    return None


def _shapes(listing: Listing, family: str) -> dict[str, Shape]:
    """Of the backbone and of a classifier, in timm's names."""
    prefix = "backbone." if listing.has(UPERNET_SIGN) else ""
    given = listing.under(prefix)
    return renamed.timm_shapes(given, SOURCES[f"transformers {family}"])


def _build(
    family: str, shapes: Mapping[str, Shape], config: Mapping[str, Any], findings: Findings
) -> Build:
    """What timm builds with these tensors."""
    builders: Mapping[str, Callable[[Mapping[str, Shape]], Build]] = {
        "resnet": renamed.resnet,
        "convnext": renamed.convnext,
        "swin": renamed.swin,
    }
    if family in builders:
        return renamed.shortest(builders[family](shapes), shapes)
    width = shapes["pos_embed"][-1]
    heads = findings.open(
        "num_heads",
        max(1, width // HEAD_WIDTH),
        why=f"heads {HEAD_WIDTH} wide",
        metadata=config.get("num_attention_heads"),
    )
    return renamed.shortest(renamed.vit(shapes, heads), shapes)


def _norm_eps(found: _Found, findings: Findings, *, whole: bool) -> dict[str, float]:
    """Where the layer norms' epsilon is not timm's: pattern -> it."""
    if found.family not in EPSILONS:
        return {}
    usual, timms = EPSILONS[found.family]
    stated = found.config.get("layer_norm_eps")
    why = "transformers' configs begin with it"
    eps = float(findings.open("layer_norm_eps", usual, why=why, metadata=stated))
    patterns = NORMS[found.family] if whole else [n for n in NORMS[found.family] if "*" in n]
    return dict.fromkeys(patterns, eps) if eps != timms else {}


def _input(listing: Listing, found: _Found) -> dict[str, Any]:
    """The arguments of `findings.spec` about the input."""
    mean, std = HALF if found.family == "vit" else IMAGENET
    stated, metadata = listing.metadata.get("preprocessor"), None
    if isinstance(stated, Mapping):
        means, stds = stated.get("image_mean"), stated.get("image_std")
        if stated.get("do_normalize", True) is False:
            means, stds = [0.0], [1.0]
        if isinstance(means, list) and isinstance(stds, list) and len(means) == len(stds) > 0:
            metadata = InputSpec.from_statistics(means, stds, channels=found.channels)
    return {
        "input_spec": InputSpec.from_statistics(mean, std, channels=found.channels),
        "input_why": "transformers' image processor of such models begins with it",
        "input_metadata": metadata,
    }


def _labels(listing: Listing) -> list[str] | None:
    """The names of the classes, unless they are the numbers that transformers makes up."""
    stated = listing.config().get("id2label")
    if not isinstance(stated, Mapping):
        return None
    names = [str(stated[key]) for key in sorted(stated, key=int)]
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else names


def _classifier(listing: Listing, findings: Findings, found: _Found) -> Description:
    encoder = findings.fixed("encoder", found.build[0])
    head = next(
        (key for key in ("fc.bias", "head.bias", "head.fc.bias") if key in found.shapes), ""
    )
    style = "transformers" if found.family == "swin" else ""
    if not head:
        options = found.encoder_options(findings, style=style)
        missing = f"build it with encoder_options={options}" if options else ""
        return Description(ENCODER_ONLY, encoder, 0, found.channels, missing=missing)
    count = found.shapes[head][0]
    if found.family.startswith("dinov2"):
        why = "its classifier reads the class token beside the mean, which timm's does not"
        return Description("classifier", encoder, count, found.channels, missing=why)
    spec = findings.spec(
        "classifier",
        encoder,
        findings.classes(count, _labels(listing)),
        **_input(listing, found),
        decoder={} if found.family == "resnet" else {"head": "timm"},
        encoder_options=found.encoder_options(findings, whole=True, style=style),
    )
    return Description("classifier", encoder, count, found.channels, spec)


def _upernet(listing: Listing, findings: Findings, found: _Found) -> Description:
    encoder = findings.fixed("encoder", found.build[0])
    count = listing.shapes["decode_head.classifier.weight"][0]
    if found.family not in ("swin", "convnext"):
        why = f"UPerNet over transformers' {found.family} is not read"
        return Description("upernet", encoder, count, found.channels, missing=why)
    pools = len({key.split(".")[2] for key in listing.shapes if "psp_modules" in key})
    usual = [1, 2, 3, 6] if pools == 4 else None
    stated = listing.config().get("pool_scales")
    scales = findings.open("pools", usual, why="transformers' default", metadata=stated)
    if scales is None or len(scales) != pools:
        why = f"its {pools} pooled branches have no known sizes: say pools="
        return Description("upernet", encoder, count, found.channels, missing=why)
    spec = findings.spec(
        "upernet",
        encoder,
        findings.classes(count, _labels(listing)),
        **_input(listing, found),
        decoder={
            "channels": findings.fixed(
                "channels", listing.shapes["decode_head.bottleneck.conv.weight"][0]
            ),
            "pools": list(scales),
            "align_corners": findings.fixed("align_corners", False, shown_by="transformers' code"),
        },
        auxiliary=_auxiliary(listing),
        encoder_options=found.encoder_options(findings, style="mmseg"),
    )
    return Description("upernet", encoder, count, found.channels, spec)


def _auxiliary(listing: Listing) -> bool | dict[str, Any]:
    convs = listing.under("auxiliary_head.")
    if not convs:
        return False
    count = sum(key.startswith("convs.") and key.endswith(".conv.weight") for key in convs)
    concat = "conv_cat.conv.weight" in convs
    channels = convs["classifier.weight"][1]
    return {"channels": channels, "num_convs": count, "concat": concat}


def _upernet_naming(scheme: SourceFormat) -> SourceFormat:
    """The scheme of the backbone behind its prefix, and UPerNet's heads."""
    rules = {
        r"^(decode_head|auxiliary_head)(.*)\.batch_norm\.": r"\1\2.bn.",
        r"^backbone\.": "",
        **dict(scheme.rules),
    }
    norms = {f"hidden_states_norms.stage{i + 1}.": f"encoder.norms.{i}." for i in range(4)}
    return replace(
        scheme,
        rules=rules,
        rename={**UPERNET, **norms, "": ENCODER_PREFIX},
        reasons={
            **{k: why for k, why in scheme.reasons.items() if "hidden_states_norms" not in k},
            "backbone.swin.layernorm.*": "a norm that no map goes through",
        },
    )
