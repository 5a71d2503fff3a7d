"""Where a batch stands in a pass through the training data, and what a loop may know of these data."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import lightning as L
import torch

from morphlightning.data import OwnedLoader
from morphlightning.interfaces import TrainingData


def ends_pass(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether a batch is the last of a pass; an epoch is one pass, but for loaders that know better."""
    return trainer.is_last_batch or (batch_idx + 1) % _batches_per_pass(trainer) == 0


def training_data(trainer: L.Trainer, owned: bool) -> TrainingData:
    """What a loop may refuse of the loader that the trainer has made; ``owned`` asks whether samples vary, too."""
    loader: Any = trainer.train_dataloader
    dataset = getattr(loader, "dataset", None)
    indexed = isinstance(loader, OwnedLoader)
    return TrainingData(
        size=len(dataset) if isinstance(dataset, Sized) else 0,
        batches_per_pass=_batches_per_pass(trainer),
        owned=indexed,
        variation=_variation(trainer, loader) if owned and indexed else None,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )


def _variation(trainer: L.Trainer, loader: OwnedLoader) -> str | None:
    """The same verdict on every process: one that raised alone would leave the others waiting."""
    found = loader.variation()
    anywhere = trainer.strategy.reduce(
        torch.tensor(float(found is not None), device=trainer.strategy.root_device), reduce_op="sum"
    )
    return found or ("a sample of another process differs when it is served again" if anywhere else None)


def _batches_per_pass(trainer: L.Trainer) -> int:
    loader: Any = trainer.train_dataloader
    batches = int(trainer.num_training_batches)
    return min(loader.batches_per_pass, batches) if isinstance(loader, OwnedLoader) else batches
