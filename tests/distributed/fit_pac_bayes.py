"""Bounds the error of one network on two processes and on one; started by tests/plugins/test_pac_bayes_certificate.py.

Usage: fit_pac_bayes.py <folder> <devices>. Process 0 writes <folder>/<devices>.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from morphlightning_plugins.diagnostics import PACBayesCertificate

from morphlightning.data import Digits
from morphlightning.metrics import WinningTaps
from morphlightning.models import CertifiedClassifier


class Counting(CertifiedClassifier):
    """With the metric of winning taps."""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.winning = WinningTaps(self.hardened())

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.winning.update(batch[0])

    def on_validation_epoch_end(self) -> None:
        if hasattr(self, "winning"):
            self.found = {name: float(value) for name, value in self.winning.compute().items()}
            self.winning.reset()


def run(folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    callback = PACBayesCertificate()
    model = Counting(
        (1, 8, 8), 10, hidden=(16,), eps=0.05, max_shift=0, optimizer={"name": "sgd", "lr": 1e-30}
    )  # what is bounded is the same on any number of processes
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[callback],
    )
    trainer.fit(model, Digits(batch_size=64 // devices))
    if trainer.is_global_zero:
        torch.save(callback.history[-1] | model.found, folder / f"{devices}.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
