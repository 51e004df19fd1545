"""Several processes as accelerate starts them; weights that are spread over them (FSDP)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from safetensors.torch import load_file, load_model
from torch import Tensor, nn

from transferseg.errors import TrainingError
from transferseg.types import Batch


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of every weight.

    Example:
        >>> is_sharded(Accelerator(cpu=True))
        False
    """
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def check_processes(accelerator: Accelerator) -> None:
    """Refuse ways to spread a training that would go wrong without a word.

    Raises:
        TrainingError: processes of a launcher that do not know of each other; the first FSDP;
            DeepSpeed; Megatron.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and "LOCAL_RANK" in os.environ and accelerator.num_processes == 1:
        raise TrainingError(
            f"a launcher started {started} processes, but accelerate found no device for them, and "
            "each would train alone, into the same files. To train on CPUs, set "
            "ACCELERATE_USE_CPU=true or give Accelerator(cpu=True)."
        )
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise TrainingError(
            f"training with {kind.value} is not supported; spread it with DDP, or with FSDP of "
            "fsdp_version 2."
        )
    if is_sharded(accelerator) and not accelerator.is_fsdp2:
        raise TrainingError(
            "the first version of FSDP is not supported: it replaces parameters that the optimizer "
            "already holds. Set fsdp_version: 2 (accelerate config, or "
            "FullyShardedDataParallelPlugin(fsdp_version=2))."
        )


def share_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the weights of the first one before they are spread, as DDP does.

    FSDP takes from each process its part of that process's own weights: random ones would be a
    patchwork.
    """
    if is_sharded(accelerator):
        _broadcast(chain(model.parameters(), model.buffers()), accelerator)


def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the buffers of the first one (the statistics of BatchNorm layers).

    Each process has counted its own batches. DDP does the same before each forward pass of
    training, so that nothing of the training changes.
    """
    if accelerator.num_processes > 1:
        _broadcast(model.buffers(), accelerator)


def _broadcast(tensors: Iterator[Tensor], accelerator: Accelerator) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(broadcast(tensor.detach().to(accelerator.device).contiguous()))


@contextmanager
def whole_weights(
    model: nn.Module, unwrapped: nn.Module, accelerator: Accelerator
) -> Iterator[None]:
    """Within, the state dict of the unwrapped model holds whole tensors, on the main process.

    Every process calls it. Without FSDP it does nothing.

    Args:
        model: as accelerate prepared it.
        unwrapped: the model itself, whose `save_pretrained` reads its state dict.
        accelerator: of the training.
    """
    if not is_sharded(accelerator):
        yield
        return
    whole = accelerator.get_state_dict(model)

    def fill(_: nn.Module, values: dict[str, Any], prefix: str, __: object) -> None:
        if not prefix:
            # copies: what was gathered has storage for more than the tensor
            values.update({name: whole[name].clone() for name in values if name in whole})

    register: Any = unwrapped.register_state_dict_post_hook  # untyped in torch
    handle = register(fill)
    try:
        yield
    finally:
        handle.remove()


def load_weights(
    model: nn.Module, unwrapped: nn.Module, accelerator: Accelerator, file: Path
) -> None:
    """Read whole tensors into a model, which may be spread over processes; every process calls it.

    Args:
        model: as accelerate prepared it.
        unwrapped: the model itself.
        accelerator: of the training.
        file: `model.safetensors`.
    """
    if not is_sharded(accelerator):
        load_model(unwrapped, file)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    whole = load_file(file) if accelerator.is_main_process else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, whole, options=options)


@contextmanager
def plain_failures(accelerator: Accelerator) -> Iterator[None]:
    """Failures of distributed saves and loads, which are no `Exception`, as errors like the others.

    Raises:
        RuntimeError: a part could not be written or read, on whichever process.
    """
    if not is_sharded(accelerator):
        yield
        return
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        raise RuntimeError(str(error)) from error


def in_step(
    batches: Iterator[Batch], accelerator: Accelerator, filler: Batch
) -> Iterator[tuple[Batch, bool]]:
    """Batches with whether they count, as many on every process: a spread model needs all of them.

    A process that has no batch left repeats its last one, which does not count.

    Args:
        batches: of this process; perhaps fewer than another one has.
        accelerator: of the training.
        filler: a batch for a process that has none at all.
    """
    while True:
        batch = next(batches, None)
        left = torch.tensor([float(batch is not None)], device=accelerator.device)
        if not accelerator.reduce(left, reduction="sum").item():
            return
        filler = filler if batch is None else batch
        yield filler, batch is not None
