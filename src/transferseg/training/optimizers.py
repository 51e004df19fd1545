"""Optimizers over a model's parameters, with weight decay only where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from transferseg.errors import TrainingError
from transferseg.training.layer_decay import layer_decay_groups

#: Parameter groups as torch takes them: each a mapping with "params" and any option of its own.
Groups: TypeAlias = Iterable[Mapping[str, Any]]


def weight_decay_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_norms_and_biases: bool = False,
    groups: Groups | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups, each split in two: with weight decay and without.

    Without decay go tensors of fewer than two dimensions (biases, the scales and shifts of
    normalisation layers, layer scales) and what a module names in its own `no_weight_decay()`
    (timm's transformers: position embeddings, class tokens). Frozen parameters are included: they
    have no gradient, so no optimizer touches them until they are unfrozen.

    Args:
        model: whose parameters are optimised.
        weight_decay: of the decayed half of every group, 0 or more.
        decay_norms_and_biases: give every parameter weight decay; the groups are not split.
        groups: groups with options of their own, such as a learning rate for each depth; their
            order is kept. One group of all parameters when not given.

    Returns:
        Groups for a torch optimizer; an empty half is left out.

    Raises:
        TrainingError: a negative decay, a group that holds a parameter of another model, a
            parameter in two groups, a parameter of the model in none.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> [(len(g["params"]), g["weight_decay"])
        ...  for g in weight_decay_groups(model, weight_decay=0.01)]
        [(1, 0.01), (3, 0.0)]
    """
    if weight_decay < 0:
        raise TrainingError(f"weight_decay must be 0 or more, got {weight_decay}.")
    whole: Groups = [{"params": model.parameters()}]
    given = [{**g, "params": list(g["params"])} for g in (whole if groups is None else groups)]
    _check_cover(model, given)
    bare = set() if decay_norms_and_biases else _without_decay(model)
    halves = []
    for group in given:
        for decay in (True, False):
            chosen = [p for p in group["params"] if (id(p) not in bare) is decay]
            if chosen:
                own = weight_decay if decay else 0.0
                halves.append({**group, "params": chosen, "weight_decay": own})
    return halves


def _check_cover(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    names = {id(p): name for name, p in model.named_parameters()}
    if not names:
        raise TrainingError("the model has no parameters to optimise.")
    seen: set[int] = set()
    for group in groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise TrainingError(
                    f"a group holds a parameter of shape {tuple(parameter.shape)} that the model "
                    "does not have; build the groups from the model that is trained."
                )
            if id(parameter) in seen:
                raise TrainingError(f"parameter {names[id(parameter)]!r} is in two groups.")
            seen.add(id(parameter))
    missing = [name for key, name in names.items() if key not in seen]
    if missing:
        raise TrainingError(
            f"{len(missing)} parameters of the model are in no group, first {missing[0]!r}; a "
            "frozen parameter belongs in a group too (it has no gradient and stays as it is)."
        )


def _without_decay(model: nn.Module) -> set[int]:
    bare = {id(p) for p in model.parameters() if p.ndim < 2}
    for module in model.modules():
        named = getattr(module, "no_weight_decay", None)
        if callable(named):
            own = dict(module.named_parameters())
            bare |= {id(own[name]) for name in named() if name in own}
    return bare


def _with_rates(
    model: nn.Module, groups: Groups | None, lr: float, layer_decay: float | None
) -> Groups | None:
    if layer_decay is None:
        return groups
    if groups is not None:
        raise TrainingError("give layer_decay= or groups=, not both: groups have their own rates.")
    return layer_decay_groups(model, lr=lr, layer_decay=layer_decay)


def adamw(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay_norms_and_biases: bool = False,
    groups: Groups | None = None,
    layer_decay: float | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay, over `weight_decay_groups`.

    Args:
        model: whose parameters are optimised.
        lr: learning rate of groups without one of their own.
        weight_decay: decoupled; each update shrinks a decayed weight by the factor 1 - lr x decay.
        betas: decay of the running first and second moments.
        eps: added to the denominator.
        decay_norms_and_biases: see `weight_decay_groups`.
        groups: see `weight_decay_groups`.
        layer_decay: factor of the learning rate from one layer of the encoder to the one below, as
            `layer_decay_groups` lays it; not together with `groups`.

    Source: Loshchilov & Hutter 2019, algorithm 2.

    Example:
        >>> optimizer = adamw(nn.Conv2d(1, 2, 3), lr=1e-4)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.01, 0.0]
    """
    return AdamW(
        weight_decay_groups(
            model,
            weight_decay=weight_decay,
            decay_norms_and_biases=decay_norms_and_biases,
            groups=_with_rates(model, groups, lr, layer_decay),
        ),
        lr=lr,
        betas=betas,
        eps=eps,
    )


def adam(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay_norms_and_biases: bool = False,
    groups: Groups | None = None,
    layer_decay: float | None = None,
) -> Optimizer:
    """Adam, over `weight_decay_groups`; its weight decay is an L2 term in the gradient.

    Args:
        model: whose parameters are optimised.
        lr: learning rate of groups without one of their own.
        weight_decay: added to the gradient as decay x weight, and so scaled by the moments too.
        betas: decay of the running first and second moments.
        eps: added to the denominator.
        decay_norms_and_biases: see `weight_decay_groups`.
        groups: see `weight_decay_groups`.
        layer_decay: factor of the learning rate from one layer of the encoder to the one below, as
            `layer_decay_groups` lays it; not together with `groups`.

    Source: Kingma & Ba 2015, algorithm 1.

    Example:
        >>> type(adam(nn.Conv2d(1, 2, 3))).__name__
        'Adam'
    """
    return Adam(
        weight_decay_groups(
            model,
            weight_decay=weight_decay,
            decay_norms_and_biases=decay_norms_and_biases,
            groups=_with_rates(model, groups, lr, layer_decay),
        ),
        lr=lr,
        betas=betas,
        eps=eps,
    )


def sgd(
    model: nn.Module,
    *,
    lr: float = 1e-2,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    decay_norms_and_biases: bool = False,
    groups: Groups | None = None,
    layer_decay: float | None = None,
) -> Optimizer:
    """Stochastic gradient descent with momentum, over `weight_decay_groups`.

    Args:
        model: whose parameters are optimised.
        lr: learning rate of groups without one of their own.
        weight_decay: added to the gradient as decay x weight.
        momentum: share of the last update that is kept, 0 for none.
        nesterov: look ahead along the momentum; needs a momentum above 0.
        decay_norms_and_biases: see `weight_decay_groups`.
        groups: see `weight_decay_groups`.
        layer_decay: factor of the learning rate from one layer of the encoder to the one below, as
            `layer_decay_groups` lays it; not together with `groups`.

    Example:
        >>> sgd(nn.Conv2d(1, 2, 3), momentum=0.0).defaults["momentum"]
        0.0
    """
    return SGD(
        weight_decay_groups(
            model,
            weight_decay=weight_decay,
            decay_norms_and_biases=decay_norms_and_biases,
            groups=_with_rates(model, groups, lr, layer_decay),
        ),
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
    )


#: Optimizers by name: functions of (model, lr=, weight_decay=, ...) -> torch optimizer.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adam": adam, "adamw": adamw, "sgd": sgd}
