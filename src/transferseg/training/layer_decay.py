"""Learning rates that fall from the decoder to the image, layer by layer of the encoder."""

from __future__ import annotations

from typing import Any

from torch import nn

from transferseg.errors import TrainingError
from transferseg.models.depth import layer_distances


def layer_decay_groups(model: nn.Module, *, lr: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with layer-wise learning-rate decay.

    Decoder, head and whatever else is not in the encoder learn with `lr`, the encoder's last layer
    with `lr * layer_decay`, the one below with `lr * layer_decay**2`, and so on down to the stem.
    The layers are timm's own for each encoder family (see `models.depth.layer_distances`). timm's
    `param_groups_layer_decay` gives the same rates as a key "lr_scale", which only timm's
    schedulers read, and leaves frozen parameters out.

    Args:
        model: of `create_model`, `create_classifier` or `create_autoencoder`.
        lr: of the decoder and the head.
        layer_decay: factor from one layer to the one below, above 0, at most 1.

    Returns:
        Groups with "params" and "lr" from the stem to the head, frozen parameters included; give
        them to an optimizer as `groups=`, or only `layer_decay=` to `adamw`, `adam` or `sgd`.

    Raises:
        TrainingError: a factor outside its range, or a model without an encoder.

    Source: Clark et al. 2020 (ELECTRA), appendix A; Bao et al. 2022 (BEiT), section 3.3.

    Example:
        >>> from transferseg.models import create_classifier
        >>> model = create_classifier("resnet10t", classes=2)
        >>> [g["lr"] for g in layer_decay_groups(model, lr=1.0, layer_decay=0.5)]
        [0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0]
    """
    if not 0 < layer_decay <= 1:
        raise TrainingError(f"layer_decay must lie above 0 and be at most 1, got {layer_decay}.")
    if not isinstance(getattr(model, "encoder", None), nn.Module):
        raise TrainingError(
            f"{type(model).__name__} has no encoder, whose layers layer_decay= tells apart; leave "
            "it out, or give groups= with a learning rate each."
        )
    distances = layer_distances(model)
    members: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        members.setdefault(distances.get(name, 0), []).append(parameter)
    return [
        {"params": members[distance], "lr": lr * layer_decay**distance}
        for distance in sorted(members, reverse=True)
    ]
