"""What the parts share: the methods, how long they train, and training itself."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from morphlightning import SafeCheckpointIO
from morphlightning.models import NormalizingFlow


@dataclass(frozen=True)
class Method:
    """A kind of flow: its settings and its learning rate."""

    settings: Mapping[str, Any]
    lr: float


METHODS = {
    "affine coupling": Method({"spline": "affine"}, 3e-3),
    "linear-spline coupling": Method({"spline": "linear"}, 3e-3),
    "quadratic-spline coupling": Method({"spline": "quadratic"}, 3e-3),
    "residual": Method({"kind": "residual", "hidden": (32, 32)}, 1e-2),
}


@dataclass(frozen=True)
class Setting:
    """What was asked for on the command line."""

    preset: str
    seeds: tuple[int, ...]

    def size(self, small: int, full: int, quick: int) -> int:
        return {"small": small, "full": full, "quick": quick}[self.preset]


@dataclass(frozen=True)
class Trained:
    """A flow, and the processor time that it took."""

    model: NormalizingFlow
    seconds: float


def train(method: Method, data: L.LightningDataModule, steps: int, seed: int, **settings: Any) -> Trained:
    """Train by Adam with a cosine schedule."""
    torch.manual_seed(seed)
    optimizer = {"name": "adam", "lr": method.lr, "schedule": "cosine"}
    model = NormalizingFlow(optimizer=optimizer, **settings | dict(method.settings))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        plugins=[SafeCheckpointIO()],
    )
    began = time.process_time()
    with quiet():
        trainer.fit(model, data)
    return Trained(model.eval(), time.process_time() - began)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning says about worker processes and about itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        yield


def tested(trained: Trained, data: L.LightningDataModule, stage: str) -> dict[str, float]:
    """The metrics of validation or test data."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    with quiet():
        run = trainer.validate if stage == "val" else trainer.test
        (metrics,) = run(trained.model, data, verbose=False)
    return {name.removeprefix(f"{stage}/"): value for name, value in metrics.items()}
