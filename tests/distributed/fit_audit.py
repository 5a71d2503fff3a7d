"""Audits a network whose understated constant only the data of process 1 reveal; started by test_guarantees_ddp.py.

Usage: fit_audit.py <folder>. Each process writes what it raised to <folder>/<rank>.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from morphlightning_plugins.diagnostics import LipschitzAudit
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from morphlightning.errors import BrokenCertificateError
from morphlightning.interfaces import LipschitzSpec


class Understated(nn.Module):
    """Level below 5 and of slope 1 above, which it does not say."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 5).relu()

    def lipschitz_spec(self) -> LipschitzSpec:
        return LipschitzSpec(0.5, "any", "any", why="understated")


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(Understated())
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.weight.square() + 0 * self.network(batch[0]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder: Path) -> None:
    torch.set_num_threads(1)
    low, high = torch.rand(8, 3), 10 + torch.rand(8, 3)
    rows = torch.stack([low, high], 1).flatten(0, 1)  # the sampler deals them out in turn
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        default_root_dir=folder,
        logger=False,
        callbacks=[LipschitzAudit(every_n_steps=2)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(Module(), DataLoader(TensorDataset(rows), 2, shuffle=False))
    except BrokenCertificateError as error:
        (folder / f"{trainer.global_rank}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
