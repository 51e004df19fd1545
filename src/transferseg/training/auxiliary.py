"""Training with an auxiliary head: both logits in one forward pass, both losses in one sum."""

from __future__ import annotations

from typing import TypeAlias, cast

from torch import Tensor, nn

from transferseg.errors import TrainingError
from transferseg.training.targets import Loss, loss_terms

#: Of the auxiliary head's loss, as in PSPNet (Zhao 2017, section 4.2) and MMSegmentation.
AUXILIARY_WEIGHT = 0.4
#: What a model gives in training: logits, or main and auxiliary logits.
Output: TypeAlias = Tensor | tuple[Tensor, Tensor]


def has_auxiliary(model: nn.Module) -> bool:
    """Whether a model's spec says that it has an auxiliary head.

    Example:
        >>> from transferseg.models import create_model
        >>> has_auxiliary(create_model("fcn", "resnet10t", classes=2, auxiliary=True))
        True
    """
    return bool(getattr(getattr(model, "spec", None), "auxiliary", False))


def weight_of(model: nn.Module, given: float | None) -> float | None:
    """The weight of the auxiliary head's loss, None for a model without such a head.

    Args:
        model: what is trained.
        given: by the caller, 0 or more; None for 0.4.

    Raises:
        TrainingError: a weight below 0, or one for a model without an auxiliary head.

    Example:
        >>> weight_of(nn.Conv2d(1, 1, 1), None) is None
        True
    """
    if not has_auxiliary(model):
        if given is not None:
            raise TrainingError(
                f"auxiliary_weight={given} for a {type(model).__name__} without an auxiliary head; "
                "leave it out, or build the model with create_model(..., auxiliary=True)."
            )
        return None
    if given is not None and not 0 <= given < float("inf"):
        raise TrainingError(f"auxiliary_weight must be a number from 0, got {given}.")
    return AUXILIARY_WEIGHT if given is None else given


def training_output(model: nn.Module, image: Tensor, *, auxiliary: bool) -> Output:
    """What is trained on: logits, with `auxiliary` those of both heads.

    Both come of one call of the model, which may be wrapped for several processes: what is computed
    beside that call takes no part in the exchange of gradients.
    """
    output: Output = model(image, auxiliary=True) if auxiliary else model(image)
    return output


def training_terms(
    loss: Loss, output: Output, target: Tensor, weight: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar to minimise and the detached scalars to log, "loss" first.

    Args:
        loss: (logits, target) -> scalar.
        output: logits, or those of both heads where there is a weight.
        target: of both.
        weight: of the auxiliary head's loss; None without such a head.

    Returns:
        main + weight x auxiliary, and the log: this sum as "loss", "main_loss", "auxiliary_loss"
        (without its weight), and the parts of the main loss.

    Example:
        >>> import torch
        >>> both = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0])
        >>> value, log = training_terms(nn.functional.l1_loss, both, torch.ones(2), 0.4)
        >>> {name: round(part.item(), 2) for name, part in log.items()}
        {'loss': 1.4, 'main_loss': 1.0, 'auxiliary_loss': 1.0}
    """
    if weight is None:
        return loss_terms(loss, cast(Tensor, output), target)
    logits, auxiliary_logits = output
    main, log = loss_terms(loss, logits, target)
    auxiliary, _ = loss_terms(loss, auxiliary_logits, target)
    if weight == 0:  # zeros, also where the head's loss or logits are infinite
        value = main + (auxiliary_logits * 0).nan_to_num().sum()
    else:
        value = main + weight * auxiliary
    whole = {"loss": value.detach(), "main_loss": log.pop("loss")}
    return value, {**whole, "auxiliary_loss": auxiliary.detach(), **log}
