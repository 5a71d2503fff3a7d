"""Small real trainings, for checks of components that act through a Trainer."""

from __future__ import annotations

import logging
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.data import indexed
from morphlightning.models import MorphologicalClassifier, PluginTraining
from morphlightning.testing._subject import require_equal

BATCHES = 4


class KeyLogger(Logger):
    """Remembers under which keys something was logged."""

    name = "keys"
    version = 0

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Remember the keys."""
        self.keys.update(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept of them."""


def classifier(plain: bool = False, **components: Any) -> MorphologicalClassifier:
    """A small dense classifier, the same at each call: morphological, or ``plain``, of linear layers and ReLU alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU()) if plain else None
        return MorphologicalClassifier((1, 2, 4), 3, channels=(), hidden=(6,), backbone=backbone, **components)


def data(batches: int = BATCHES) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of separable samples, in a fixed order."""
    draw = torch.Generator().manual_seed(2)
    target = torch.arange(24) % 3
    images = torch.rand(24, 1, 2, 4, generator=draw)
    images[torch.arange(24), 0, 0, target] += 1
    return DataLoader(TensorDataset(images, target), batch_size=24 // batches)


def fit(
    model: PluginTraining,
    epochs: int = 2,
    *,
    resume_from: Path | None = None,
    save_to: Path | None = None,
    loader: DataLoader[tuple[Tensor, ...]] | None = None,
    callbacks: Sequence[pl.Callback] = (),
    logger: Logger | None = None,
) -> pl.Trainer:
    """Train and validate on the CPU, quietly, from a fixed random state; with indices for what owns samples."""
    torch.manual_seed(4)
    random.seed(4)
    np.random.seed(4)
    with tempfile.TemporaryDirectory() as folder, _quiet_lightning():
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            logger=logger or False,
            log_every_n_steps=1,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        loader = data() if loader is None else loader
        loader = indexed(loader) if model.owns_samples else loader
        weights_only = None if resume_from is None else True
        trainer.fit(model, loader, data(), ckpt_path=resume_from, weights_only=weights_only)
        if save_to is not None:
            trainer.save_checkpoint(save_to)
    return trainer


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's tips and without its warnings, which say nothing about the component."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        log.setLevel(level)


def random_states() -> list[Tensor]:
    """The global random states of torch, numpy and Python."""
    return [
        torch.get_rng_state(),
        torch.from_numpy(np.random.get_state()[1].astype(np.int64)),  # type: ignore[index]
        torch.tensor(random.getstate()[1]),
    ]


def require_equal_parameters(seen: pl.LightningModule, expected: pl.LightningModule) -> None:
    """Fail where two models differ in any bit."""
    right = expected.state_dict()
    for name, value in seen.state_dict().items():
        require_equal(value, right[name], name)
