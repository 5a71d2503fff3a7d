"""Trains on two processes, under the stability monitor or without; started by test_stability_ddp.py.

Usage: fit_watched.py <folder> watched|alone. Process 0 writes <folder>/<the second word>.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from morphlightning_plugins.diagnostics import StabilityMonitor
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.layers import Dilation2d, Erosion

SETTINGS = {"gradients": (0.2,), "groups": ("shift", "brightness"), "batches": 2}


def images() -> Tensor:
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Model(L.LightningModule):
    """A small classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.network = nn.Sequential(Dilation2d(1, 2, 3), nn.Dropout(0.2), nn.Flatten(), Erosion(128, 3)).double()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(folder: Path, name: str) -> None:
    data = TensorDataset(images().double(), torch.arange(16) % 3)
    module = Model()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        default_root_dir=folder,
        callbacks=[StabilityMonitor(**SETTINGS)] if name == "watched" else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(5)
    trainer.fit(module, DataLoader(data, 4), DataLoader(data, 4))
    if trainer.is_global_zero:
        logged = {key: value for key, value in trainer.callback_metrics.items() if "stability" in key}
        saved = {"state": module.state_dict(), "random": torch.get_rng_state(), "logged": logged}
        torch.save(saved, folder / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
