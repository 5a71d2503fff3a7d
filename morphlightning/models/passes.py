"""Where a batch stands in a pass through the training data, and what a loop may know of these data."""

from __future__ import annotations

from collections.abc import Sized
from functools import partial
from typing import Any

import lightning as L
import torch

from morphlightning.data import OwnedLoader, ResumableLoader
from morphlightning.data.loader import progress_of
from morphlightning.interfaces import TrainingData


def keep_count(trainer: L.Trainer) -> None:
    """Let a loader of the user's ask this trainer how many batches were worked through, as our data modules do."""
    loader = trainer.train_dataloader
    if isinstance(loader, ResumableLoader) and (
        loader.progress is None or getattr(loader.progress, "func", None) is progress_of
    ):
        loader.progress = partial(progress_of, trainer)


def ends_pass(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether a batch is the last of a pass; an epoch is one pass, but for loaders that know better."""
    batches = _batches_per_pass(trainer)
    return trainer.is_last_batch or (batches > 0 and (batch_idx + 1) % batches == 0)


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
    """Batches of a pass, 0 where nobody knows."""
    loader, batches = trainer.train_dataloader, trainer.num_training_batches
    if batches == float("inf"):
        return 0
    return min(loader.batches_per_pass, int(batches)) if isinstance(loader, OwnedLoader) else int(batches)
