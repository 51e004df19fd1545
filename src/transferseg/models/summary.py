"""What a model costs, part by part: parameters, multiply-adds, strides and channels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from transferseg.errors import SpecError
from transferseg.models.depth import encoder_stages, without_values
from transferseg.models.values import is_whole

HEADER = ("part", "parameters", "trainable", "multiply-adds", "stride", "channels")
SMALLEST = 32


@dataclass(frozen=True)
class PartSummary:
    """One part of a model.

    Attributes:
        part: its name, as `freeze` takes it; "encoder.stages[i]" is what feature map i needs beyond
            the maps before it.
        parameters: how many values.
        trainable: how many of them get a gradient.
        multiply_adds: of one image.
        stride: of the feature map, for a stage of the encoder.
        channels: of the feature map, for a stage of the encoder.
    """

    part: str
    parameters: int
    trainable: int
    multiply_adds: int
    stride: int | None = None
    channels: int | None = None


@dataclass(frozen=True)
class ModelSummary:
    """A model's parts with their sum; printed as a table.

    Attributes:
        image_size: (H, W) for which multiply-adds are counted, in pixels.
        rows: the parts; after the encoder its stages, and the pyramid of a plain ViT, which are
            among the encoder's numbers already.
    """

    image_size: tuple[int, int]
    rows: tuple[PartSummary, ...]

    def __getitem__(self, part: str) -> PartSummary:
        """The row of a part.

        Raises:
            SpecError: there is none of that name.
        """
        for row in self.rows:
            if row.part == part:
                return row
        raise SpecError(f"no part {part!r}; there are {[row.part for row in self.rows]}.")

    @property
    def total(self) -> PartSummary:
        """The sum over the model."""
        whole = [row for row in self.rows if "." not in row.part]
        return PartSummary(
            "total",
            sum(row.parameters for row in whole),
            sum(row.trainable for row in whole),
            sum(row.multiply_adds for row in whole),
        )

    def __str__(self) -> str:
        cells = [HEADER, *self._cells()]
        widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
        lines = []
        for first, *others in cells:
            numbers = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
            lines.append("  ".join([first.ljust(widths[0]), *numbers]).rstrip())
        return "\n".join([self._title, *lines])

    def to_markdown(self) -> str:
        """The table in Markdown."""
        lines = [f"**{self._title}**", "", f"| {' | '.join(HEADER)} |"]
        lines += ["|---|" + "---:|" * (len(HEADER) - 1)]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self._cells())])

    @property
    def _title(self) -> str:
        return f"One image of {self.image_size[0]}x{self.image_size[1]}"

    def _cells(self) -> Iterable[tuple[str, ...]]:
        for row in (*self.rows, self.total):
            numbers = (row.parameters, row.trainable, row.multiply_adds)
            of_map = (row.stride, row.channels)
            yield (
                row.part,
                *(f"{number:,}" for number in numbers),
                *("" if number is None else str(number) for number in of_map),
            )


def summarise(model: Any, image_size: tuple[int, int]) -> ModelSummary:  # noqa: ANN401 - a SpecModel
    """See `SpecModel.summary`."""
    sides = tuple(image_size) if isinstance(image_size, (list, tuple)) else ()
    if len(sides) != 2 or not all(is_whole(side, SMALLEST) for side in sides):
        raise SpecError(
            f"image_size is (H, W), whole numbers from {SMALLEST} pixels up, got {image_size!r}."
        )
    try:
        counts = _multiply_adds(model, image_size)
    except AssertionError as error:  # timm's, of a classifier for one size
        raise SpecError(
            f"{model.spec.encoder!r} takes no images of {image_size}: {error}; give image_size=."
        ) from error
    rows = []
    for part, module in model.named_children():
        if any(True for _ in module.parameters()):
            rows.append(_row(part, module.named_parameters(part), counts))
            if part == "encoder":
                rows += _encoder_rows(model, counts)
    return ModelSummary((image_size[0], image_size[1]), tuple(rows))


def _encoder_rows(model: Any, counts: dict[str, int]) -> list[PartSummary]:  # noqa: ANN401
    encoder, parameters = model.encoder, dict(model.named_parameters())
    rows = []
    maps = zip(encoder_stages(model), encoder.strides, encoder.channels, strict=True)
    for index, (names, stride, channels) in enumerate(maps):
        own = [(name, parameters[name]) for name in names]
        rows.append(_row(f"encoder.stages[{index}]", own, counts, stride, channels))
    if encoder.pyramid is not None:
        own = [pair for pair in parameters.items() if pair[0].startswith("encoder.pyramid.")]
        rows.append(_row("encoder.pyramid", own, counts))
    return rows


def _row(
    part: str,
    own: Iterable[tuple[str, nn.Parameter]],
    counts: dict[str, int],
    stride: int | None = None,
    channels: int | None = None,
) -> PartSummary:
    pairs = list(own)
    sizes = [parameter.numel() for _, parameter in pairs]
    trainable = sum(parameter.numel() for _, parameter in pairs if parameter.requires_grad)
    done = sum(counts.get(name, 0) for name, _ in pairs)
    return PartSummary(part, sum(sizes), trainable, done, stride, channels)


def _multiply_adds(model: Any, image_size: tuple[int, int]) -> dict[str, int]:  # noqa: ANN401
    """Parameter -> multiply-adds of the modules whose first parameter it is.

    What a module does apart from its submodules is its own: a convolution's, or, in an attention,
    the products of queries, keys and values.
    """
    twin = without_values(model).eval()
    names = {id(parameter): name for name, parameter in twin.named_parameters()}
    firsts = {m: names[id(p)] for m in twin.modules() for p in list(m.parameters())[:1]}
    counts: dict[str, int] = defaultdict(int)
    begun: list[int] = []  # of the modules that run: multiply-adds before, and of submodules
    dtype = next(twin.parameters()).dtype
    image = torch.empty(1, model.spec.input.channels, *image_size, dtype=dtype, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:

        def enter(module: nn.Module, given: Any) -> None:  # noqa: ANN401, ARG001
            begun.append(counter.get_total_flops())

        def leave(module: nn.Module, given: Any, result: Any) -> None:  # noqa: ANN401, ARG001
            now = counter.get_total_flops()
            since = now - begun.pop()
            counts[firsts[module]] += since // 2
            begun[:] = [before + since for before in begun]

        for module in firsts:
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
        twin(image)
    return counts
