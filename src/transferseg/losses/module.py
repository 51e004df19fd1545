"""What the losses of masks share as modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

from transferseg.losses.inputs import MODES, check_choice, check_class_weight, weight_buffer
from transferseg.types import TargetMode

#: One value a class.
ClassWeight: TypeAlias = Tensor | Sequence[float] | None
#: The options that hold one value a class.
WEIGHTS = ("class_weight", "pos_weight", "dice_class_weight")


class MaskLoss(nn.Module):
    """A loss of (logits, target) with its options kept, each as an attribute of its name.

    A subclass names its function, and lists that function's options in its own constructor.

    Args:
        mode: "binary", "multiclass" or "multilabel".
        options: of the function, by name. Those of `WEIGHTS` are buffers, which move with the
            module and are no part of its state dict.
    """

    _function: ClassVar[Callable[..., Any]]
    names: ClassVar[tuple[str, ...]]
    class_weight: Tensor | None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.names = tuple(inspect.signature(cls.__init__).parameters)[2:]  # less self and mode

    def __init__(
        self,
        mode: TargetMode,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        check_choice("mode", mode, MODES)
        check_class_weight(mode, options["class_weight"])
        self.mode = mode
        for name, value in options.items():
            if name in WEIGHTS:
                self.register_buffer(name, weight_buffer(name, value), persistent=False)
            else:
                setattr(self, name, value)

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, in the order of the constructor."""
        return {name: getattr(self, name) for name in self.names}

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The scalar loss."""
        loss: Tensor = type(self)._function(logits, target, mode=self.mode, **self.options)
        return loss

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        shown = [repr(self.mode)]
        for name, value in self.options.items():
            shown.append(f"{name}={value.tolist() if isinstance(value, Tensor) else repr(value)}")
        return ", ".join(shown)
