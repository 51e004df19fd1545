"""What the losses of masks share as modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias, get_args

from torch import Tensor, nn

from transferseg.losses.inputs import check_choice, weight_buffer
from transferseg.types import TargetMode

#: One value a class.
ClassWeight: TypeAlias = Tensor | Sequence[float] | None


class MaskLoss(nn.Module):
    """A loss of (logits, target) with its options kept.

    Args:
        mode: "binary", "multiclass" or "multilabel".
        class_weight: of the function; kept as a buffer, which moves with the module and is no part
            of its state dict.
        options: of the function, by name.
    """

    function: ClassVar[Callable[..., Tensor]]
    class_weight: Tensor | None

    def __init__(
        self,
        mode: TargetMode,
        class_weight: ClassWeight,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        check_choice("mode", mode, get_args(TargetMode))
        self.mode = mode
        self.options = options
        self.register_buffer("class_weight", weight_buffer(class_weight), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The scalar loss."""
        function: Callable[..., Tensor] = type(self).function
        return function(
            logits, target, mode=self.mode, class_weight=self.class_weight, **self.options
        )

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        weight = None if self.class_weight is None else self.class_weight.tolist()
        parts = [repr(self.mode), *(f"{name}={value!r}" for name, value in self.options.items())]
        return ", ".join([*parts, f"class_weight={weight}"])
