"""Certifies and grows a network on two processes and on one; started by test_optimality_callbacks.py.

Usage: fit_optimality.py <folder> <devices>. Process 0 writes <folder>/optimality-<devices>.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from morphlightning_plugins.diagnostics import GlobalOptimalityCertificate
from morphlightning_plugins.regularizers import MatchedDecay
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.callbacks import GrowSubnetwork
from morphlightning.guarantees.optimality import GainDilation, ParallelSum
from morphlightning.models import LiftedModule

N = 20


def run(folder: Path, devices: int) -> None:
    x = torch.linspace(-2, 2, N, dtype=torch.float64)
    data = TensorDataset(torch.stack([x, torch.zeros_like(x)], 1), (2.2 * x).sin()[:, None])
    network = ParallelSum(GainDilation(2), 0, 5)
    model = LiftedModule(network, optimizer={"name": "adam", "lr": 0.02}, regularizers=[MatchedDecay(0.02)])
    grow = GrowSubnetwork(every_n_epochs=5, starts=3, steps=10)
    certificate = GlobalOptimalityCertificate(every_n_epochs=5, starts=3, steps=10)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="64-true",
        max_epochs=20,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[grow, certificate],
    )
    trainer.fit(model, DataLoader(data, batch_size=N // devices), DataLoader(data, batch_size=N))
    if trainer.is_global_zero:
        result = {
            "parameters": dict(network.named_parameters()),
            "count": network.count,
            "certified": certificate.history,
            "grown": grow.history,
        }
        torch.save(result, folder / f"optimality-{devices}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(sys.argv[2]))
