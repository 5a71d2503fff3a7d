"""What callbacks about global optimality share: the objective of a fit, of all its samples at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from morphlightning.callbacks.random_state import capture, restore
from morphlightning.errors import ConfigError, DataError
from morphlightning.guarantees.optimality import Objective, ParallelSum, Shards, SlicePenalty, output_loss_of

TOGETHER = 1024
"""Samples that pass the fixed part of a network together."""


class WholeObjective:
    """The objective that a LightningModule minimizes, if it is one that theorems of global optimality are about.

    It has to be the mean of a known convex loss of the output of one :class:`ParallelSum`, of fixed inputs, plus
    ``matched_decay``; nothing else may train, decay or penalize. Samples are read once: no augmentation, no minibatch.

    Args:
        who: Who asks, for messages.
        trainer: The Trainer, in a fit.
        module: The module; ``data_loss`` and ``regularizers`` as morphlightning's models have them.
        loader: All samples in one batch; None for the training data, if they are one batch (over all processes).
        weight: What the weight of the penalty must be; None for any.
        degree: What the degree of the subnetworks must be; None for any.

    Raises:
        ConfigError: Anything of this is not so; the message says what, with the numbers.
    """

    def __init__(
        self,
        who: str,
        trainer: Trainer,
        module: LightningModule,
        loader: Iterable[Any] | None = None,
        weight: float | None = None,
        degree: int | None = None,
    ) -> None:
        self.network = _only_sum(who, module)
        self._weight = _weight(who, module, self.network, weight)
        if degree is not None and degree != self.network.degree:
            raise ConfigError(
                f"{who}: degree={degree} was asked for, the subnetworks ({self.network.subnetwork}) have degree "
                f"{self.network.degree}; leave degree out, or change the subnetwork"
            )
        _refuse_decay(who, trainer, self.network)
        data = trainer.fit_loop._data_source.dataloader() if loader is None else loader
        device = module.device
        random = capture(device)
        try:
            batch = trainer.strategy.batch_to_device(_whole_batch(who, data, trainer.world_size), device)
        finally:
            restore(random, device)
        with torch.inference_mode(False), torch.no_grad(), _evaluating(module):
            self._x, output = _inputs(who, module, self.network, batch[0])
        self._y = batch[1]
        self._loss = output_loss_of(getattr(module, "data_loss", None), output[0].numel())
        self._shards = Shards(len(self._x), trainer.global_rank, trainer.world_size, _sum_over(trainer))

    def now(self) -> Objective:
        """The objective at the present parameters."""
        return Objective(self.network, self._loss, self._x, self._y, self._weight, self._shards)


def _only_sum(who: str, module: nn.Module) -> ParallelSum:
    found = [child for child in module.modules() if isinstance(child, ParallelSum)]
    if len(found) != 1:
        raise ConfigError(
            f"{who}: {type(module).__name__} holds {len(found)} ParallelSum modules, expected exactly one: it is about "
            "sums of homogeneous subnetworks (morphlightning.guarantees.optimality.ParallelSum)"
        )
    held = {id(parameter) for parameter in found[0].parameters()}
    others = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in held]
    if others:
        raise ConfigError(
            f"{who}: {', '.join(others[:5])} train beside the ParallelSum; a certificate is for fixed inputs of it and "
            "for its output alone: freeze them (requires_grad_(False)) or leave them out"
        )
    return found[0]


def _weight(who: str, module: nn.Module, network: ParallelSum, asked: float | None) -> float:
    given = getattr(module, "regularizers", {})
    named = dict(given) if isinstance(given, Mapping) else {type(one).__name__: one for one in given}
    penalties = [one for one in named.values() if isinstance(one, SlicePenalty)]
    others = [name for name, one in named.items() if not isinstance(one, SlicePenalty)]
    if len(penalties) != 1 or others:
        raise ConfigError(
            f"{who}: the regularizers of {type(module).__name__} are {list(named) or 'none'}, expected matched_decay "
            "once and nothing else: the bound is for the loss plus its penalty"
        )
    penalties[0].check(network)
    if asked is not None and asked != penalties[0].weight:
        raise ConfigError(
            f"{who}: weight={asked:g} was asked for, the model's matched_decay has weight {penalties[0].weight:g}; a "
            "certificate for another lambda than that of training says nothing: leave weight out, or make them equal"
        )
    return penalties[0].weight


def _refuse_decay(who: str, trainer: Trainer, network: ParallelSum) -> None:
    held = {id(parameter) for parameter in network.parameters()}
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            if group.get("weight_decay") and any(id(p) in held for p in group["params"]):
                raise ConfigError(
                    f"{who}: {type(optimizer).__name__} decays the slices by weight_decay={group['weight_decay']:g}, "
                    "which is no part of the objective; set it to 0, matched_decay is there for it"
                )


def _whole_batch(who: str, loader: Iterable[Any], processes: int) -> Any:
    """All samples of a loader as one batch; refused where training sees them in several."""
    remedy = (
        "a global certificate is about the full-batch gradient, minibatches say nothing; pass "
        "loader=DataLoader(subset, batch_size=len(subset))"
    )
    if not isinstance(loader, DataLoader):
        batches = list(islice(loader, 2))
        if len(batches) != 1:
            raise ConfigError(f"{who}: the loader gives {'no batch' if not batches else 'several batches'}; {remedy}")
        return _pair(who, batches[0])
    dataset: Any = loader.dataset
    size = len(dataset) if isinstance(dataset, Sized) else 0
    together = (loader.batch_size or 0) * processes
    if not size or together < size:
        raise ConfigError(
            f"{who}: the loader gives batches of {together} samples of a dataset of {size or 'unknown size'}; {remedy}"
        )
    sampler: Any = loader.sampler
    seen = len(sampler) * getattr(sampler, "num_replicas", 1)
    if seen < size:
        raise ConfigError(f"{who}: the loader sees {seen} samples of a dataset of {size}; {remedy}")
    return _pair(who, loader.collate_fn([dataset[index] for index in range(size)]))


def _pair(who: str, batch: Any) -> Any:
    if not isinstance(batch, list | tuple) or len(batch) < 2 or not all(isinstance(b, Tensor) for b in batch[:2]):
        raise DataError(f"{who}: a batch is a {type(batch).__name__}, expected tensors (inputs, targets)")
    return batch


def _inputs(who: str, module: LightningModule, network: ParallelSum, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What comes into the sum, and the output of the first samples."""
    caught: list[tuple[Tensor, Tensor]] = []
    handle = network.register_forward_hook(lambda _, given, made: caught.append((given[0], made)))
    try:
        outputs = [module(part) for part in inputs.split(TOGETHER)]
    finally:
        handle.remove()
    if len(caught) != len(outputs) or not all(torch.equal(o, c[1]) for o, c in zip(outputs, caught, strict=True)):
        raise ConfigError(
            f"{who}: the output of {type(module).__name__} is not that of its ParallelSum; the loss has to be a convex "
            "function of the sum itself: put everything fixed in front of it, nothing behind it"
        )
    return torch.cat([given for given, _ in caught]), outputs[0]


def _sum_over(trainer: Trainer) -> Any:
    def total(tensor: Tensor) -> Tensor:
        found: Tensor = trainer.strategy.reduce(tensor, reduce_op="sum")
        return found

    return total


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards each module in its own again."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode
