"""Freezing: parts that do not train, BatchNorm statistics included, and when they begin to."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TypeVar

from torch import nn

from transferseg.errors import SpecError, did_you_mean
from transferseg.models.depth import encoder_stages, encoder_stem

F = TypeVar("F", bound="Freezable")
_MARK = "_frozen_parameters"  # an attribute of modules: no tensor, so no key of a checkpoint
#: The mark of modules that serve only feature maps that nobody reads; they never train.
UNREAD = "_transferseg_unread"
_STAGES = re.compile(r"encoder\.stages\[(?:(-?\d+)|(-?\d*):(-?\d*))\]")


class Freezable(nn.Module):
    """A network whose frozen parts stay in evaluation mode through `train()`.

    Every model of `create_model` and its siblings is one; a network of your own becomes one by this
    base. What is frozen stands in the modules themselves, and so goes along with `deepcopy`,
    pickles and wrappers (DistributedDataParallel, `torch.compile`), but not into checkpoints.

    Example:
        >>> class Net(Freezable):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
        ...         self.head = nn.Conv2d(2, 1, 1)
        >>> net = Net()
        >>> freeze(net, "body")
        >>> _ = net.train()
        >>> net.head.training, any(module.training for module in net.body.modules())
        (True, False)
    """

    def train(self: F, mode: bool = True) -> F:
        """Set the mode of every module, except that frozen parts stay in evaluation mode."""
        super().train(mode)
        if mode:
            _rest(self)
        return self


def freeze(model: nn.Module, *what: str) -> None:
    """Stop the training of parts of a model, until `unfreeze`.

    Their parameters get no gradient (`requires_grad=False`), and every submodule all of whose
    parameters are frozen is put into evaluation mode and stays there through `model.train()`: its
    BatchNorm statistics do not move, its dropout is silent. So the features of a frozen encoder are
    the same before and after the training of the rest, to the last bit. (With `requires_grad_` by
    hand, BatchNorm goes on learning its statistics; that is still possible, and another thing.)

    Optimizers keep frozen parameters in their groups and leave them as they are.

    Args:
        model: of `create_model`, `create_classifier`, `create_autoencoder`, or any `Freezable`.
        *what: each one of
            a part or any module by its path: "encoder", "head", "decoder.blocks.0";
            "encoder.stem": the layer that reads the image;
            "encoder.stages[2]", "encoder.stages[:2]", "encoder.stages[-1]": by feature map, for
            every encoder: what map 2 needs beyond the maps before it, all that maps 0 and 1 need,
            what only the deepest needs; `model.encoder.strides` tells their number;
            a pattern on parameter names: "*.bn1.*", "encoder.model.blocks.[0-3].*".

    Raises:
        SpecError: a name that fits no parameter, or a model that is not `Freezable`.

    Example:
        >>> from transferseg.models import create_model
        >>> model = create_model("unet", "resnet10t", classes=2)
        >>> freeze(model, "encoder.stages[:2]")
        >>> model.encoder.model.layer1.training, model.encoder.model.layer2.training
        (False, True)
    """
    _freeze(model, _Names(model).of(what))


def unfreeze(model: nn.Module, *what: str) -> None:
    """Let parts of a model train; its submodules follow the model's mode again.

    Args:
        model: as for `freeze`.
        *what: as for `freeze`; "*" for everything. What trains already goes on.

    Raises:
        SpecError: as for `freeze`.

    Example:
        >>> from transferseg.models import create_model
        >>> model = create_model("unet", "resnet10t", classes=2)
        >>> freeze(model, "encoder")
        >>> unfreeze(model, "encoder.stages[-1]")
        >>> model.encoder.model.layer3.training, model.encoder.model.layer4.training
        (False, True)
    """
    _unfreeze(model, _Names(model).of(what))


def frozen(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that `freeze` has frozen.

    Args:
        model: any.

    Returns:
        Their names in the model's order; empty for none.

    Example:
        >>> from transferseg.models import create_model
        >>> model = create_model("unet", "resnet10t", classes=2)
        >>> freeze(model, "head")
        >>> frozen(model)
        ('head.weight', 'head.bias')
    """
    held = _held(model)
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in held)


@dataclass(frozen=True)
class Unfreezing:
    """Gradual unfreezing: what begins to train at which epoch.

    What is named trains from its epoch on, counted in complete epochs (0: from the beginning), and
    is frozen before; what is named twice begins at the earlier. What is not named is left as it is.
    The state of the model follows from the epoch alone, so that a resumed run goes on as it was.

    Give it to `fit` or `train` as `unfreeze=`, or apply it yourself before each epoch. Over several
    processes prepare the state while everything that will ever train is trainable, with
    `Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])`:
    torch exchanges no gradients of parameters that were frozen when it wrapped the model, and waits
    for those of all others. `fit` checks both.

    Attributes:
        parts: epoch -> what begins to train there, each a name or several as `freeze` takes them.

    Raises:
        SpecError: nothing named, or an epoch that is no whole number from 0.

    Source: Howard & Ruder 2018 (ULMFiT), section 3.3.

    Example:
        >>> from transferseg.models import create_model
        >>> model = create_model("unet", "resnet10t", classes=2)
        >>> gradual = Unfreezing({2: "encoder.stages[3:]", 4: "encoder"})
        >>> for epoch in (0, 2, 4):
        ...     gradual.apply(model, epoch)
        ...     print(epoch, len(frozen(model)))
        0 42
        2 24
        4 0
    """

    parts: Mapping[int, str | Sequence[str]]

    def __post_init__(self) -> None:
        for epoch, what in self.parts.items():
            if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0 or not what:
                raise SpecError(
                    "unfreezing takes epochs, whole numbers from 0, and what begins to train at "
                    f"each; got {epoch!r}: {what!r}."
                )
        if not self.parts:
            raise SpecError("unfreezing names nothing that begins to train.")
        parts = {
            epoch: (what,) if isinstance(what, str) else tuple(what)
            for epoch, what in sorted(self.parts.items())
        }
        object.__setattr__(self, "parts", parts)

    def apply(self, model: nn.Module, epoch: int) -> None:
        """Freeze and unfreeze what is named, as it must be after `epoch` complete epochs.

        Args:
            model: as for `freeze`.
            epoch: complete epochs, from 0.

        Raises:
            SpecError: as for `freeze`.
        """
        names, begin = _Names(model), dict[str, int]()
        for start, what in self.parts.items():  # in the order of the epochs: the earlier one wins
            for name in names.of(what):
                begin.setdefault(name, start)
        _unfreeze(model, {name for name, start in begin.items() if start <= epoch})
        _freeze(model, {name for name, start in begin.items() if start > epoch})

    def release(self, model: nn.Module) -> None:
        """Unfreeze everything that is named, as after the last of its epochs."""
        self.apply(model, max(self.parts))

    def every(self, runs: int) -> Unfreezing:
        """The same where an epoch consists of several runs and the runs are counted."""
        return Unfreezing({epoch * runs: what for epoch, what in self.parts.items()})


def rest(module: nn.Module) -> None:
    """Let a module that nobody reads never train, whatever is unfrozen: no gradient reaches it.

    Args:
        module: whose parameters get no gradient from now on.

    Example:
        >>> unread = nn.Linear(2, 2)
        >>> rest(unread)
        >>> unread.weight.requires_grad
        False
    """
    module.requires_grad_(False)
    for part in module.modules():
        vars(part)[UNREAD] = True


def _freeze(model: nn.Module, names: Collection[str]) -> None:
    for module, own in _owners(model, names):
        parameter = module.get_parameter(own)
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimizer would still step along it
        vars(module)[_MARK] = vars(module).get(_MARK, frozenset()) | {own}
    _rest(model)


def _unfreeze(model: nn.Module, names: Collection[str]) -> None:
    resting = list(_resting(model, _held(model)))
    for module, own in _owners(model, names):
        if UNREAD in vars(module):  # no gradient would reach it
            continue
        module.get_parameter(own).requires_grad_(True)
        vars(module)[_MARK] = vars(module).get(_MARK, frozenset()) - {own}
    for module in resting:
        module.train(model.training)
    if model.training:
        _rest(model)


def _owners(model: nn.Module, names: Collection[str]) -> Iterator[tuple[nn.Module, str]]:
    """The module of each named parameter and the parameter's name in it."""
    for path, module in model.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            if (f"{path}.{own}" if path else own) in names:
                yield module, own


def _held(model: nn.Module) -> set[int]:
    """Identities of the parameters that `freeze` has frozen."""
    return {
        id(parameter)
        for module in model.modules()
        if _MARK in vars(module)
        for own, parameter in module.named_parameters(recurse=False)
        if own in vars(module)[_MARK] and not parameter.requires_grad
    }


def _resting(module: nn.Module, held: set[int]) -> Iterator[nn.Module]:
    """The largest submodules with parameters, all of them frozen."""
    for child in module.children():
        own = [id(parameter) for parameter in child.parameters()]
        if own and held.issuperset(own):
            yield child
        else:
            yield from _resting(child, held)


def _rest(model: nn.Module) -> None:
    if held := _held(model):
        for module in _resting(model, held):
            module.eval()


class _Names:
    """What words mean in a model: each a set of parameter names."""

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, Freezable):
            raise SpecError(
                f"{type(model).__name__} cannot be frozen: its train() would put frozen parts into "
                "training mode again. Build it with create_model, or derive it from "
                "models.Freezable."
            )
        self.model = model
        self.all = [name for name, _ in model.named_parameters()]

    @cached_property
    def stages(self) -> list[tuple[str, ...]]:
        """Of the encoder, none where there is no encoder."""
        return encoder_stages(self.model) if hasattr(self.model, "encoder") else []

    def of(self, what: Sequence[str]) -> set[str]:
        """The parameters that are meant; each word must mean some."""
        if not what:
            raise SpecError("say what, such as 'encoder', or '*' for everything.")
        chosen: set[str] = set()
        for one in what:
            found = self._matching(one) if isinstance(one, str) else []
            if not found:
                raise SpecError(self._unknown(one))
            chosen.update(found)
        return chosen

    def _matching(self, one: str) -> Sequence[str]:
        if one == "encoder.stem" and hasattr(self.model, "encoder"):
            return encoder_stem(self.model)
        if asked := _STAGES.fullmatch(one):
            index, begin, end = asked.groups()
            if index is None:
                chosen = self.stages[int(begin) if begin else None : int(end) if end else None]
            else:
                count = len(self.stages)
                chosen = self.stages[int(index) :][:1] if -count <= int(index) else []
            return [name for stage in chosen for name in stage]
        exact = [name for name in self.all if name == one or name.startswith(f"{one}.")]
        return exact or [name for name in self.all if fnmatchcase(name, one)]

    def _unknown(self, one: object) -> str:
        parts = list(dict.fromkeys(name.partition(".")[0] for name in self.all))
        stages = [f"encoder.stages[{index}]" for index in range(len(self.stages))]
        paths = [path for path, _ in self.model.named_modules() if path]
        listed = ", ".join(map(repr, [*parts, *(["encoder.stem"] if stages else []), *stages]))
        near = did_you_mean(str(one), [*parts, "encoder.stem", *stages, *paths, *self.all])
        return (
            f"{one!r} names no parameter of this {type(self.model).__name__}: expected one of "
            f"{listed}, the path of a module, or a pattern on parameter names such as '*.bn1.*'."
            f"{near}"
        )
