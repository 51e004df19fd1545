"""`load_checkpoint`: the model that a checkpoint describes, with all of its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from transferseg.errors import CheckpointError, TransferError, TransfersegError, some
from transferseg.load.formats import ENCODER_ONLY
from transferseg.load.inspection import CheckpointInfo, Examined, examine
from transferseg.load.listing import listing_of, read_weights
from transferseg.models.autoencoder import Autoencoder
from transferseg.models.base import SpecModel
from transferseg.models.classifier import Classifier
from transferseg.models.segmenter import Segmenter
from transferseg.spec import InputSpec, ModelSpec
from transferseg.transfer import (
    Declarations,
    SourceFormat,
    TransferPlan,
    TransferReport,
    apply_plan,
    make_plan,
)
from transferseg.types import TargetMode


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    entry: str | None = None,
    encoder: str | None = None,
    classes: int | Sequence[str] | None = None,
    mode: TargetMode | None = None,
    threshold: float | None = None,
    output_stride: int | None = None,
    dilation: str | None = None,
    input_spec: InputSpec | None = None,
    encoder_options: Mapping[str, Any] | None = None,
    **decoder: Any,  # noqa: ANN401 - the decoder's own options
) -> tuple[SpecModel, TransferReport]:
    """The model that a checkpoint of any known ecosystem describes, with all of its weights.

    It computes what the library that wrote the file computes. What names and shapes do not tell
    comes from the keywords, else from the file's metadata, else from what is usual there; the
    report's notes say which.

    Args:
        path: as in `inspect_checkpoint`, and so are the keywords.
        entry: which of several sets of weights in the file, such as "ema".
        encoder: which of several encoders of equal shapes it is.
        classes: their names, or their number.
        mode: as in `create_model`.
        threshold: as in `create_model`.
        output_stride: that the model was trained with.
        dilation: as in `create_model`.
        input_spec: what the weights expect of an image.
        encoder_options: as in `create_model`.
        **decoder: options of the decoder that no shape tells.

    Returns:
        The model, in eval mode, and the report: every tensor of the model was loaded, and every
        tensor of the file was used, or is named with the reason why not.

    Raises:
        CheckpointError: the file cannot be read, is of no known format, holds an encoder alone, or
            fits several encoders; or a keyword contradicts it. It says what to do.
        TransferError: tensors are missing, too many, or of another shape; it names them.

    Example:
        >>> import tempfile, timm, torch
        >>> theirs = timm.create_model("resnet10t", num_classes=2).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": theirs.state_dict()}, f"{folder}/a.pth")
        ...     model, report = load_checkpoint(f"{folder}/a.pth", classes=["cat", "dog"])
        >>> x = torch.rand(1, 3, 64, 64)
        >>> torch.allclose(model(x), theirs(x), atol=1e-5), model.spec.classes, report.peeled
        (True, ('cat', 'dog'), ('state_dict',))
    """
    asked = {
        "encoder": encoder,
        "classes": classes,
        "mode": mode,
        "threshold": threshold,
        "output_stride": output_stride,
        "dilation": dilation,
        "input_spec": input_spec,
        "encoder_options": encoder_options,
        **decoder,
    }
    weights = read_weights(path, entry=entry)
    seen = examine(listing_of(weights, path), asked)
    spec = _spec(seen)
    naming = seen.format.naming(seen.listing, spec) if seen.format else None
    assert naming is not None  # a spec comes from a format alone
    model = _build_what_fits(spec, weights.tensors, naming, seen.info)
    report = fill(model, weights.tensors, naming, seen.info)
    return model.eval(), report


def _build_what_fits(
    spec: ModelSpec, tensors: Mapping[str, Tensor], naming: SourceFormat, info: CheckpointInfo
) -> SpecModel:
    """The model, after its shapes were compared: a config.json can ask for more than the memory."""
    try:
        with torch.device("meta"):
            shapes = build(spec)
    except TransfersegError:
        raise
    except (NotImplementedError, RuntimeError):  # constructors that compute with values
        return build(spec)
    except Exception as error:  # an option of a type that no builder expects
        raise CheckpointError(f"{info.path}: no model can be built of {spec}: {error}") from error
    _plan(shapes, tensors, naming, info)
    with _WithoutRandomValues():  # type: ignore[no-untyped-call] # all that is random is about to be overwritten
        return build(spec)


class _WithoutRandomValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Leaves out the drawing of initial weights, which takes longer than reading a file."""

    drawing = frozenset(
        (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)  # all of torch.nn.init
    )

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        return args[0] if func in self.drawing else func(*args, **(kwargs or {}))


def build(spec: ModelSpec) -> SpecModel:
    """The model of a spec, of whichever kind, with random weights.

    Raises:
        CheckpointError: no kind of model has that architecture.

    Example:
        >>> type(build(ModelSpec("unet", "resnet10t", ("lung",), mode="binary"))).__name__
        'Segmenter'
    """
    for kind in (Segmenter, Classifier, Autoencoder):
        if kind.builds(spec.architecture):
            return kind(spec)
    raise CheckpointError(f"no model has the architecture {spec.architecture!r}.")


def fill(
    model: SpecModel, tensors: Mapping[str, Tensor], naming: SourceFormat, info: CheckpointInfo
) -> TransferReport:
    """Move all of a file's tensors into all of a model, or refuse and change nothing.

    Args:
        model: the target.
        tensors: of the file.
        naming: how its keys become the model's.
        info: what is known of it, for the report.

    Raises:
        TransferError: naming what is missing, too much, or of another shape.
    """
    plan = _plan(model, tensors, naming, info)
    try:
        apply_plan(plan, tensors, model)
    except TransferError as error:
        raise _misfit(info, error) from None
    beside = (f"beside the weights: {name}" for name in info.others)
    notes = (*(f"assumed {one}" for one in info.assumed), *beside)
    return TransferReport(plan, info.path, naming.name, info.peeled, notes)


def _plan(
    model: SpecModel, tensors: Mapping[str, Tensor], naming: SourceFormat, info: CheckpointInfo
) -> TransferPlan:
    """Where all of a file's tensors go in all of a model."""
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    parts = tuple(dict.fromkeys(key.split(".")[0] for key in state))
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    try:
        plan = make_plan(shapes, state, parts=parts, source_format=naming, declared=Declarations())
        # make_plan declares parts of ours that nobody asks for; here all of them are asked for
        if lost := [key for key in plan.unused if naming.why_unused(key) is None]:
            raise TransferError(f"tensors that the model has no place for: {some(lost)}.")
    except TransferError as error:
        raise _misfit(info, error) from None
    return plan


def _misfit(info: CheckpointInfo, error: TransferError) -> TransferError:
    what = f"{info.architecture} over {info.encoder} ({info.format} names)"
    return TransferError(f"{info.path} was taken for {what}, but does not fit: {error}")


def _spec(seen: Examined) -> ModelSpec:
    """The spec that was found, or the error that says what is open."""
    info = seen.info
    if info.spec is not None:
        return info.spec
    if info.architecture == ENCODER_ONLY and info.encoder:
        raise CheckpointError(
            f"{info.path} holds the encoder {info.encoder!r} and no head, so no model to build. "
            f"Use it as create_model(..., {info.encoder!r}, weights=path), or move it into a model "
            f"with transfer_weights(path, model): {info.missing}."
        )
    if info.format is None:
        raise CheckpointError(
            f"{info.path} is of no format that is known, or its tensors do not all fit one. Its "
            f"keys begin: {some(seen.listing.shapes)}. If it is a timm model, encoder= tells which "
            "tensors do not fit; else build the model with create_model and say with "
            "transfer_weights(path, model, rename=) how they correspond."
        )
    raise CheckpointError(f"{info.path} ({info.format}) was not loaded: {info.missing}.")
