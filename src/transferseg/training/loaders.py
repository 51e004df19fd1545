"""Data loaders made fit for training: repeatable order, resumable epochs, no lone last sample.

How an epoch is made repeatable. A shuffling loader draws its order from its sampler's generator
and one number for its workers from its own. Where none is given torch draws both from the global
random state, and then neither the order nor the state of dropout can be found again in the middle
of an epoch. So every loader that is trained on gets generators of its own, seeded anew from (seed,
epoch) at the start of each epoch; resuming seeds them the same way and skips the batches done.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sized
from contextlib import closing, contextmanager
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import DataLoaderStateMixin, prepare_data_loader
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from transferseg.errors import TrainingError, some
from transferseg.training.auxiliary import has_auxiliary, training_output
from transferseg.training.inference import device_of
from transferseg.training.modes import evaluation_mode
from transferseg.training.sharded import is_sharded
from transferseg.training.targets import Loader

_TORCH_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
#: Hands on the events of a generator; between two of them the loader is as its owner made it.
Lending: TypeAlias = Callable[[Any], Iterator[Any]]


def prepared(accelerator: Accelerator, loader: Loader, *, even_batches: bool) -> Any:  # noqa: ANN401 - a loader with accelerate's ways
    """The loader as accelerate spreads it over processes and devices; as it is if it was prepared.

    `Accelerator.prepare_data_loader` would keep every loader it ever prepared, with its workers;
    this prepared loader lives as long as its caller. Resuming skips batches, so accelerate's
    stateful loaders, which would skip them a second time, are not used.
    """
    if isinstance(loader, DataLoaderStateMixin):
        return loader
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        split_batches=accelerator.split_batches,
        put_on_device=accelerator.device_placement,
        rng_types=list(accelerator.rng_types),
        dispatch_batches=accelerator.dispatch_batches,
        even_batches=even_batches,
        use_seedable_sampler=accelerator.use_seedable_sampler,
        data_seed=accelerator.dataloader_config.data_seed,
        non_blocking=accelerator.non_blocking,
    )


def own_generators(loader: Loader) -> None:
    """Give a loader and its sampler a generator where they have none."""
    plain = getattr(loader, "base_dataloader", loader)
    if plain.generator is None:
        plain.generator = torch.Generator()
    sampler = _samplers(plain)[-1]
    if isinstance(sampler, _TORCH_SAMPLERS) and sampler.generator in (None, plain.generator):
        # Not the loader's own: a new iterator draws the workers' seed from that, and an iterator
        # with persistent workers does not, so that the order would differ after a resume.
        sampler.generator = torch.Generator()


def epoch_of(loader: Loader, *, seed: int, epoch: int, skip: int) -> Any:  # noqa: ANN401
    """The prepared loader, set to an epoch (from 0), without its first `skip` batches.

    Every torch generator of the loader, its batch sampler and its sampler is seeded from (seed,
    epoch); a sampler, batch sampler or data set with `set_epoch` is told the epoch.
    """
    plain = getattr(loader, "base_dataloader", loader)
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    for holder in (plain, *_samplers(plain)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(int(mixed >> np.uint64(1)))  # torch takes 63 bits
    cast(Any, loader).set_epoch(epoch)
    if hasattr(plain.dataset, "set_epoch"):  # accelerate tells it only if it tells no sampler
        plain.dataset.set_epoch(epoch)
    return skip_first_batches(loader, skip) if skip else loader


def _samplers(plain: Any) -> list[Any]:  # noqa: ANN401
    """What decides about the order of a loader: its batch sampler, down to its sampler.

    Over several processes accelerate puts batch samplers around batch samplers.
    """
    found = [plain.sampler if plain.batch_sampler is None else plain.batch_sampler]
    while True:
        inner = getattr(found[-1], "batch_sampler", None) or getattr(found[-1], "sampler", None)
        if inner is None:
            return found
        found.append(inner)


def length(loader: Loader) -> int | None:
    """Batches in an epoch, None where the loader cannot know."""
    try:
        return len(loader)
    except TypeError:
        return None


def epoch_batches(accelerator: Accelerator, loader: Loader, model: nn.Module) -> int | None:
    """Batches of each process in an epoch of `fit`, None where the loader cannot know.

    A last batch of one sample that `fit` leaves out is none. The model, which need not be prepared,
    and the random state are left as they were.

    Raises:
        TrainingError: every batch is of one sample and a BatchNorm would see one value.
    """
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        evaluation_mode(model),  # for the modes that it gives back
    ):
        warnings.simplefilter("ignore")  # `fit` will say it
        with without_lone_samples(accelerator, loader, model):
            return length(prepared(accelerator, loader, even_batches=accelerator.even_batches))


@contextmanager
def without_lone_samples(
    accelerator: Accelerator, loader: Loader, model: nn.Module
) -> Iterator[Lending]:
    """Leave out a last batch of one sample for as long as training goes on, if it cannot be used.

    A batch normalisation in training mode cannot normalise a single value per channel: a batch of
    one where its map is 1x1, as in pyramid or image-level pooling. Whether the model has such a map
    is found by looking, with one sample of the data set in evaluation mode.

    Returns:
        What hands on the events of training: who looks at the loader between two of them, to
        evaluate it say, sees all of it.

    Raises:
        TrainingError: every batch is of one sample and a BatchNorm would see one value.
    """
    sampler: Any = getattr(loader, "batch_sampler", None)
    kind = _lone(sampler, accelerator.num_processes)
    names = _single_value_norms(model, loader, accelerator) if kind else []
    if not names:
        yield iter
        return
    if kind == "all":
        raise TrainingError(
            f"batches of one sample, but {some(names)} normalises over the batch and would see one "
            "value a channel; use a batch size of 2 or more, or freeze that layer."
        )
    warnings.warn(
        f"the last batch of every epoch has one sample and is left out: {some(names)} would see "
        "one value a channel. Give the loader drop_last=True, or another batch size.",
        stacklevel=4,
    )
    sampler.drop_last = True  # exactly the lone sample; before the loader is prepared and counted
    try:
        yield lambda events: _lent(events, sampler)
    finally:
        sampler.drop_last = False


def _lent(events: Any, sampler: Any) -> Iterator[Any]:  # noqa: ANN401
    """The events of a generator; while the caller has the word the sampler drops nothing."""
    with closing(events):
        for event in events:
            sampler.drop_last = False
            try:
                yield event
            finally:
                sampler.drop_last = True


def _lone(sampler: Any, processes: int) -> str | None:  # noqa: ANN401
    """Which batches hold one sample: "all", the "last" or none, as far as can be told beforehand.

    Batch samplers of other classes are left to the moment when their batch comes.
    """
    if type(sampler) is not BatchSampler or not isinstance(sampler.sampler, Sized):
        return None
    count = len(sampler.sampler)
    if sampler.batch_size == 1 or (count == 1 and processes == 1):
        return "all"
    # Over several processes accelerate fills the last batches up from the start of the epoch.
    lone = count % sampler.batch_size == 1 and not sampler.drop_last and processes == 1
    return "last" if lone else None


def _single_value_norms(model: nn.Module, loader: Loader, accelerator: Accelerator) -> list[str]:
    """Names of the batch normalisations that see a 1x1 map and would train."""
    model.train()
    seen: list[str] = []
    norms = {
        name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training
    }

    def look(name: str) -> Any:  # noqa: ANN401
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if inputs[0].shape[2:].numel() == 1 and name not in seen:
                seen.append(name)

        return hook

    if not norms:
        return []
    handles = [norm.register_forward_pre_hook(look(name)) for name, norm in norms.items()]
    index = next(iter(loader.sampler), None) if loader.sampler is not None else 0
    if index is None:  # no sample at all, which is told by the length of the loader
        return []
    try:
        # A data set that has not been told its epoch augments from the global random state, and
        # a resumed run, which looks again, would go on with another one.
        with torch.random.fork_rng(devices=[]):
            sample = loader.dataset[index]
        with evaluation_mode(model), torch.no_grad():
            device = accelerator.device if is_sharded(accelerator) else device_of(model)
            image = torch.as_tensor(sample["image"])[None].to(device)
            training_output(model, image, auxiliary=has_auxiliary(model))
    except ValueError:
        if not seen:  # a norm without running statistics refuses the single value itself
            raise
    finally:
        for handle in handles:
            handle.remove()
    return seen
