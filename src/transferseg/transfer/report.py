"""A transfer as text, Markdown, HTML and JSON: what moved, how, and what did not."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from transferseg.errors import TransferError, unknown_name
from transferseg.transfer.plan import TransferPlan


@dataclass(frozen=True)
class Coverage:
    """How much of a part came from the source.

    Attributes:
        loaded_tensors: tensors of the part that were loaded or adapted.
        tensors: tensors of the part.
        loaded_values: values (parameters and buffers) that came from the source.
        values: values of the part.
    """

    loaded_tensors: int
    tensors: int
    loaded_values: int
    values: int

    @property
    def fraction(self) -> float:
        """Loaded values over all values, 0 to 1."""
        return self.loaded_values / self.values

    def __str__(self) -> str:
        tensors = f"{self.loaded_tensors}/{self.tensors} tensors"
        return f"{tensors}, {self.loaded_values:,}/{self.values:,} values ({self.fraction:.1%})"


@dataclass(frozen=True)
class TransferReport:
    """What a transfer did; printed in a terminal, a table in a notebook.

    Attributes:
        plan: where every tensor went.
        source: where the weights came from.
        source_format: whose names they had.
        peeled: wrappers that were taken off the source's keys.
        notes: what else is worth knowing.

    Example:
        >>> import transferseg as ts
        >>> classifier = ts.create_classifier("resnet10t", classes=2)
        >>> print(ts.transfer_weights(classifier, ts.create_model("unet", "resnet10t", classes=2)))
        Transfer from Classifier in memory (transferseg names)
        part     tensors loaded  values loaded           coverage
        encoder  84 of 84        4,928,374 of 4,928,374  100.0%
        unused 2: part 'head' was not asked for
    """

    plan: TransferPlan
    source: str
    source_format: str
    peeled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def coverage(self) -> Mapping[str, Coverage]:
        """Coverage by part, in the order in which the parts were given.

        Counters of batches that the source lacks are not counted: they enter no result, and files
        from before PyTorch 0.4.1, torchvision's DenseNets among them, have none.
        """
        lacking = {key for key in self.plan.left if key.endswith(".num_batches_tracked")}
        wanted = {key: s for key, s in self.plan.target.items() if key not in lacking}
        result = {}
        for part in self.plan.parts:
            shapes = {k: s for k, s in wanted.items() if f"{k}.".startswith(f"{part}.")}
            moves = [move for move in self.plan.moves if move.target in shapes]
            result[part] = Coverage(
                len(moves),
                len(shapes),
                sum(move.covered for move in moves),
                sum(map(prod, shapes.values())),
            )
        return result

    def raise_if_below(self, **least: float) -> None:
        """Refuse a transfer that covered less than wanted.

        Args:
            **least: part -> least fraction of its values, 0 to 1.

        Raises:
            TransferError: a part below its bound, or a part that was not in the plan.
        """
        for part, bound in least.items():
            if part not in self.coverage:
                raise TransferError(unknown_name("part of this transfer", part, self.coverage))
            if self.coverage[part].fraction < bound:
                raise TransferError(
                    f"{part}: {self.coverage[part]} came from {self.source}, wanted {bound:.1%}."
                )

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for part, coverage in self.coverage.items():
            tensors = f"{coverage.loaded_tensors} of {coverage.tensors}"
            values = f"{coverage.loaded_values:,} of {coverage.values:,}"
            rows.append((part, tensors, values, f"{coverage.fraction:.1%}"))
        return rows

    def _remarks(self) -> list[str]:
        lines = [f"peeled {prefix!r}" for prefix in self.peeled]
        adapted = [(m.adapter.name, m.adapter.note) for m in self.plan.moves if m.adapter]
        lines += [f"adapted {n} by {name}: {note}" for (name, note), n in Counter(adapted).items()]
        joined = Counter(len(m.sources) for m in self.plan.moves if m.joined)
        lines += [f"joined {n}: each from {count} tensors" for count, n in joined.items()]
        lines += [
            f"left at initialisation {n}: {why}"
            for why, n in Counter(self.plan.left.values()).items()
        ]
        lines += [f"unused {n}: {why}" for why, n in Counter(self.plan.unused.values()).items()]
        return [*lines, *self.notes]

    @property
    def _title(self) -> str:
        return f"Transfer from {self.source} ({self.source_format} names)"

    def to_text(self) -> str:
        """The report as aligned plain text."""
        rows = [("part", "tensors loaded", "values loaded", "coverage"), *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([self._title, *table, *self._remarks()])

    __str__ = to_text

    def to_markdown(self) -> str:
        """The report as a Markdown table with remarks."""
        lines = [f"**{self._title}**", "", "| part | tensors loaded | values loaded | coverage |"]
        lines += ["|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in self._rows()), ""]
        return "\n".join([*lines, *(f"- {line}" for line in self._remarks())])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{n}</th>" for n in ("part", "tensors", "values", "coverage"))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self._rows()
        )
        remarks = "".join(f"<li>{html.escape(line)}</li>" for line in self._remarks())
        title = html.escape(self._title)
        return f"<p><b>{title}</b></p><table><tr>{head}</tr>{body}</table><ul>{remarks}</ul>"

    def to_dict(self) -> dict[str, Any]:
        """Every tensor's fate, as JSON-ready values."""
        moves = [
            {
                "source": move.source,
                **({"joined": list(move.joined)} if move.joined else {}),
                "target": move.target,
                "shape": list(move.target_shape),
                "adapter": move.adapter and {"name": move.adapter.name, "note": move.adapter.note},
            }
            for move in self.plan.moves
        ]
        return {
            "source": self.source,
            "format": self.source_format,
            "peeled": list(self.peeled),
            "notes": list(self.notes),
            "parts": list(self.plan.parts),
            "coverage": {part: vars(coverage) for part, coverage in self.coverage.items()},
            "moves": moves,
            "left": dict(self.plan.left),
            "unused": dict(self.plan.unused),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1)
