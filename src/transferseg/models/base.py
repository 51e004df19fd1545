"""What segmenter, autoencoder and classifier share: an encoder, a spec, a checkpoint folder."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from transferseg.errors import CheckpointError, SpecError
from transferseg.models.capabilities import capabilities_with
from transferseg.models.checkpointing import checkpoint_encoder, compute_again, count_once
from transferseg.models.encoders import Encoder
from transferseg.models.freezing import Freezable
from transferseg.models.summary import ModelSummary, summarise
from transferseg.spec import ModelSpec
from transferseg.transfer import Adapter, NeutralStart, TransferReport, read_source, read_spec
from transferseg.transfer.files import CONFIG_FILE, TRANSFER_FILE, write_checkpoint

M = TypeVar("M", bound="SpecModel")


class SpecModel(Freezable, PyTorchModelHubMixin, ABC):
    """A network that is its `ModelSpec` plus its weights (abstract).

    Args:
        spec: a model spec, or its values as `to_dict` gives them.
        pretrained: of the encoder, as timm takes it.
    """

    #: the architectures that this class builds, as an error message says it
    kind: ClassVar[str]
    takes_auxiliary: ClassVar[bool] = False  # whether it can have an auxiliary head

    def __init__(
        self, spec: ModelSpec | Mapping[str, Any], *, pretrained: bool | str = False
    ) -> None:
        super().__init__()
        self.spec = spec if isinstance(spec, ModelSpec) else ModelSpec.from_dict(spec)
        self._check_kind(self.spec)
        if self.spec.auxiliary and not self.takes_auxiliary:
            raise SpecError(
                f"{type(self).__name__} has no auxiliary head, which segmentation models alone "
                "have; leave auxiliary=False."
            )
        self.encoder: Any = self._build_encoder(pretrained)  # an Encoder, or what stands in for it
        # What the mixin writes as config.json when it pushes to a hub.
        self._hub_mixin_config = {"spec": self.spec.to_dict()}

    def _build_encoder(self, pretrained: bool | str) -> nn.Module:
        return Encoder(
            self.spec.encoder,
            in_channels=self.spec.input.channels,
            output_stride=self.spec.output_stride,
            dilation=self.spec.dilation,
            pretrained=pretrained,
            options=self._encoder_options(),
        )

    def _encoder_options(self) -> dict[str, Any]:
        """Those of the spec; over a plain ViT a reader of one map takes the ViT's own."""
        options = dict(self.spec.encoder_options)
        plain = capabilities_with(self.spec.encoder, options).plain
        if not self._reads_pyramid() and plain is not None:
            options.setdefault("pyramid", "none")
        return options

    def _reads_pyramid(self) -> bool:
        """Whether it reads feature maps at several strides, not one alone."""
        return True

    def summary(self, image_size: tuple[int, int] = (224, 224)) -> ModelSummary:
        """Parameters and multiply-adds by part, strides and channels of the encoder's maps.

        One multiply-add is two of the operations that torch counts (`FlopCounterMode`): those of
        convolutions and matrix products, the two of every attention included. Biases, norms,
        activations, poolings and resizings are not counted. Counted for one image in evaluation
        mode, with tensors that hold no values: it takes no memory and leaves the model as it is. An
        auxiliary head, which only training runs, has 0.

        Args:
            image_size: (H, W) in pixels, from 32 up.

        Raises:
            SpecError: another image size.

        Example:
            >>> import transferseg as ts
            >>> print(ts.create_model("fcn", "resnet10t", classes=2, channels=8).summary((64, 64)))
            One image of 64x64
            part               parameters  trainable  multiply-adds  stride  channels
            ...
            >>> ts.create_classifier("resnet10t", classes=2).summary().total.parameters
            4923514
        """
        return summarise(self, image_size)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Activation checkpointing: train in less memory, for about one more forward pass a step.

        The activations of blocks of the encoder and of the decoder are not kept for the backward
        pass but computed again in it. Gradients are the same, random dropping is repeated as it
        was, and BatchNorm statistics move once a step, as without. It is not stored in the spec or
        in checkpoints: it changes no result. Convert to SyncBatchNorm first, if at all.

        Args:
            enable: True for on, False for off.

        Raises:
            SpecError: an encoder that cannot; nothing was changed.

        Example:
            >>> import torch, transferseg as ts
            >>> model = ts.create_model("unet", "resnet10t", classes=2)
            >>> model.set_grad_checkpointing()
            >>> model(torch.rand(2, 3, 64, 64)).mean().backward()
        """
        checkpoint_encoder(self.encoder.model, self.spec.encoder, enable=enable)
        decoder = getattr(self, "decoder", None)
        if decoder is not None:
            for segment in decoder.segments():
                compute_again(segment, enable=enable)
            count_once(decoder, enable=enable)

    @classmethod
    @abstractmethod
    def builds(cls, architecture: str) -> bool:
        """Whether this class builds that architecture."""

    @classmethod
    def _check_kind(cls, spec: ModelSpec) -> None:
        if not cls.builds(spec.architecture):
            raise CheckpointError(
                f"{cls.__name__} builds {cls.kind}, but the spec says {spec.architecture!r}."
            )

    @abstractmethod
    def transfer_rows(self) -> tuple[str, ...]:
        """Keys of the tensors that have one row a class."""

    def transfer_unused(self) -> tuple[str, ...]:
        """Keys of the timm model that its encoder does without (classifier heads)."""
        pruned: tuple[str, ...] = self.encoder.pruned
        return pruned

    def transfer_stem(self) -> tuple[str, ...]:
        """Keys of the convolutions that read the image."""
        return tuple(f"encoder.{key}" for key in self.encoder.stem_keys())

    def transfer_adapters(self) -> Mapping[str, Adapter]:
        """Key -> adapter from another layout of the decoder, or the encoder at another size."""
        decoder = getattr(self, "decoder", None)
        adapters = decoder.transfer_adapters() if decoder is not None else {}
        own = {f"decoder.{key}": adapter for key, adapter in adapters.items()}
        sized = self.encoder.transfer_adapters().items()
        return own | {f"encoder.{key}": adapter for key, adapter in sized}

    def transfer_starts(self) -> Sequence[NeutralStart]:
        """How what other layouts of this model's decoder lack begins, if it has one."""
        decoder = getattr(self, "decoder", None)
        starts = decoder.transfer_starts() if decoder is not None else ()
        return [start.under("decoder.") for start in starts]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        transfer: TransferReport | None = None,
        config: Any = None,  # noqa: ANN401 - a dict; the mixin takes dataclasses too
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push: Any,  # noqa: ANN401 - the mixin's own options, checked by it
    ) -> str | None:
        """Write `model.safetensors` and `config.json` (and `transfer.json`), atomically.

        Args:
            save_directory: made if it does not exist; a checkpoint in it is replaced.
            transfer: the report of the transfer that the weights began with.
            config: must be what the spec says, if given (the hub's mixin gives it).
            repo_id: on the hub; the folder's name by default.
            push_to_hub: also upload it; see `push_to_hub`.
            model_card_kwargs: of the model card, which is written when pushing.
            **push: options of `push_to_hub`.

        Returns:
            The address of the commit on the hub when pushed, else None.

        Raises:
            CheckpointError: another config than the spec's, or hub options without a push.

        Example:
            >>> import tempfile, transferseg as ts
            >>> model = ts.create_model("unet", "resnet10t", classes=["lung"], in_channels=1)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save_pretrained(folder)
            ...     ts.Segmenter.from_pretrained(folder).spec == model.spec
            True
        """
        own = {"spec": self.spec.to_dict()}
        if config is not None and dict(config) != own:
            raise CheckpointError("config= is not this model's spec; leave it out.")
        if not push_to_hub and (push or repo_id):
            raise CheckpointError(
                f"{sorted(push) or ['repo_id']}: options of a push to the hub; "
                "give push_to_hub=True, or leave them out."
            )
        texts = {CONFIG_FILE: json.dumps(own, indent=2, sort_keys=True)}
        if transfer is not None:
            texts[TRANSFER_FILE] = transfer.to_json()
        stale = () if transfer is not None else (TRANSFER_FILE,)
        write_checkpoint(save_directory, self, texts, remove=stale)
        if model_card_kwargs is not None:
            card = self.generate_model_card(**model_card_kwargs)
            card.save(Path(save_directory) / "README.md")
        if not push_to_hub:
            return None
        address: str = self.push_to_hub(
            repo_id=repo_id or Path(save_directory).name,
            model_card_kwargs=dict(model_card_kwargs or {}),
            **push,
        )
        return address

    @classmethod
    def from_pretrained(
        cls: type[M],
        pretrained_model_name_or_path: str | os.PathLike[str],
        **hub: Any,  # noqa: ANN401 - the mixin's own options, passed on
    ) -> M:
        """The model of a checkpoint folder (or of a hub repository), in eval mode.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, or the name of a
                repository on the Hugging Face hub.
            **hub: options of the hub's download (`revision`, `token`, `cache_dir`, ...).

        Raises:
            CheckpointError: no such folder or repository, another kind of model, or weights that
                do not fit the spec; it names the folder and the keys.
        """
        name = pretrained_model_name_or_path
        path = Path(name)
        # A hub name is "repository" or "owner/repository", and no folder here.
        on_hub = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)
        if path.exists() or not on_hub:
            if hub:
                raise CheckpointError(f"{path} is a folder; {sorted(hub)} are for the hub.")
            return cls._from_folder(path)
        load = cast(Callable[..., M], super().from_pretrained)
        try:
            return load(name, strict=True, **hub)
        except CheckpointError:
            raise
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{name!r} is neither a folder here nor a hub repository that can be read: {error}"
            ) from error

    @classmethod
    def _from_folder(cls: type[M], folder: Path) -> M:
        spec = read_spec(folder)
        try:
            cls._check_kind(spec)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from None
        weights: Mapping[str, Tensor] = read_source(folder).tensors
        model = cls(spec)
        try:
            model.load_state_dict(dict(weights), strict=True)
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: the weights do not fit the spec. {error}") from error
        return model.eval()
