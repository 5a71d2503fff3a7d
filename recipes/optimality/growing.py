"""A network that grows in stages of full-batch training, and what its certificate says after each."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from morphlightning import registry
from morphlightning.callbacks import GrowSubnetwork
from morphlightning.guarantees.optimality import Homogeneous, ParallelSum
from morphlightning.models import LiftedModule


@dataclass(frozen=True)
class Stages:
    """How many slices at most, steps between two of them, and the search for the next one."""

    slices: int
    steps: int
    starts: int
    search: int
    rate: float = 0.02


class FullBatches(IterableDataset[tuple[Tensor, Tensor]]):
    """All samples, again and again: one batch a step, ``steps`` times."""

    def __init__(self, x: Tensor, y: Tensor, steps: int) -> None:
        self.batch, self.steps = (x, y), steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * self.steps)

    def __len__(self) -> int:
        return self.steps


@dataclass
class Grown:
    """The model and the certificates of its stages, the first one before any training."""

    model: LiftedModule
    history: list[dict[str, float]]
    verdict: str


def train(
    subnetwork: Homogeneous,
    x: Tensor,
    y: Tensor,
    loss: str,
    weight: float,
    stages: Stages,
    seed: int,
    device: str,
    grow: bool = True,
    count: int = 0,
    classes: int | None = None,
    rounds: int | None = None,
) -> Grown:
    """Train in stages; with ``grow`` from ``count`` slices on, else with those, drawn at random, for as many stages."""
    generator = torch.Generator().manual_seed(seed)
    network = ParallelSum(subnetwork, count, stages.slices, start=0.1, generator=generator)
    model = LiftedModule(
        network,
        loss,
        {"name": "adam", "lr": stages.rate, "schedule": "cosine"},
        num_classes=classes,
        regularizers=[{"name": "matched_decay", "weight": weight}],
    )
    whole = [(x, y)]
    certificate = registry.build(
        "diagnostics", "optimality_certificate", loader=whole, starts=stages.starts, steps=stages.search
    )
    callbacks: list[L.Callback] = [certificate]
    if grow:
        callbacks.append(
            GrowSubnetwork(1, tolerance=1e-2, starts=stages.starts, steps=stages.search, stop=True, loader=whole)
        )
    batches: DataLoader[Any] = DataLoader(FullBatches(x, y, stages.steps), batch_size=None)
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = L.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            max_epochs=stages.slices + 1 if rounds is None else rounds,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        trainer.fit(model, batches, DataLoader(FullBatches(x, y, 1), batch_size=None))
    return Grown(model.cpu(), certificate.history, str(certificate.report))


@torch.no_grad()
def accuracy(model: LiftedModule, x: Tensor, y: Tensor) -> float:
    """Share of images whose class has the largest output."""
    model.eval()
    return float((model(x).argmax(1) == y).double().mean())


class quiet:
    """Without Lightning's tips, which say nothing about what is measured here."""

    def __enter__(self) -> None:
        self._log = logging.getLogger("lightning.pytorch")
        self._level = self._log.level
        self._log.setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", module=r"lightning\.")

    def __exit__(self, *error: Any) -> None:
        self._warnings.__exit__(*error)
        self._log.setLevel(self._level)
