"""Lifted training on two processes and on one, some cases in a row; started by test_lifted_ddp.py.

Usage: fit_lifted.py <folder> <devices> <job>... Process 0 writes <folder>/<job>-<devices>.pt for each job.

A job is a case, or a case with what becomes of its checkpoint: ``badmm:save``, ``badmm:resume=<devices that saved>``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from morphlightning import LiftedModule, SafeCheckpointIO
from morphlightning.data import OwnedLoader, indexed

N, EPOCHS = 201, 5  # epochs of three passes
SAVED_AFTER = 7  # passes, and half of the next one
CASES: dict[str, dict[str, Any]] = {
    "badmm": {"name": "badmm"},
    "mirror": {"name": "badmm", "x_step": "mirror", "order": "ZWXM"},
    "sweep": {"name": "badmm", "order": "xWM", "w_step": "gradient"},
    "full": {"name": "lifted"},
    "incremental": {"name": "lifted", "mode": "incremental"},
    "memoryless": {"name": "lifted", "mode": "memoryless"},
    "ema": {"name": "lifted", "mode": "ema"},
    "stream": {"name": "badmm"},
    "stream-full": {"name": "lifted"},
    "stream-cpu": {"name": "badmm", "storage": "cpu"},
    "conv": {"name": "badmm"},
    "conv-stream": {"name": "lifted"},
    "shards": {"name": "badmm", "checkpoints": "shards"},
    "shards-stream": {"name": "badmm", "checkpoints": "shards"},
    "nan": {"name": "badmm"},
    "nan-stream": {"name": "badmm"},
}


def global_batch(case: str) -> int:
    """Samples of a batch of all processes; where they are few, a process often owns none of them."""
    by_batch = "stream" in case or CASES[case].get("mode", "full") != "full"
    return 202 if not by_batch else 4 if "stream" in case else 68


def data(case: str, devices: int) -> OwnedLoader:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(N, 6, generator=draw, dtype=torch.float64)
    y = (x @ torch.randn(6, 3, generator=draw, dtype=torch.float64)).relu()
    if "conv" in case:
        x = x[:, None, :, None] * torch.randn(1, 1, 1, 5, generator=draw, dtype=torch.float64)
        y = x.roll(1, 2).relu() - 0.3 * x
    if case.startswith("nan"):
        x[101] = float("nan")  # of process 1
    return indexed((x, y), global_batch(case) // devices, passes=3, shuffle=True)


def network(case: str) -> nn.Module:
    torch.manual_seed(0)
    if "conv" in case:
        return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 3, padding=1))
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3))


class SaveAt(Callback):
    """Saves a checkpoint after some batches."""

    def __init__(self, path: Path, after: int) -> None:
        self.path, self.after, self.seen = path, after, 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.after:
            trainer.save_checkpoint(self.path)


class Logged(Callback):
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.kept: dict[str, list[float]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        for name, value in trainer.callback_metrics.items():
            self.kept.setdefault(name, []).append(float(value))


def run(folder: Path, devices: int, job: str) -> None:
    case, _, what = job.partition(":")
    saved_by = what.removeprefix("resume=")
    callbacks: list[Callback] = [logged := Logged()]
    if what == "save":
        pieces = -(-N // global_batch(case))
        callbacks.append(SaveAt(folder / f"{case}-{devices}.ckpt", SAVED_AFTER * pieces + pieces // 2))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="64-true",
        max_epochs=EPOCHS,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[SafeCheckpointIO()],
        callbacks=callbacks,
    )
    model = LiftedModule(network(case), optimizer={"ridge": 0.1, "monitor_every": 4} | CASES[case])
    resume = {"ckpt_path": folder / f"{case}-{saved_by}.ckpt", "weights_only": True} if saved_by.isdigit() else {}
    trainer.fit(model, data(case, devices), **resume)  # type: ignore[arg-type]
    if trainer.is_global_zero:
        weights: dict[str, Tensor] = {name: p.detach() for name, p in model.named_parameters()}
        result = {"weights": weights, "steps": trainer.global_step, "logged": logged.kept}
        torch.save(result, folder / f"{job}-{devices}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[3:]:
        run(Path(sys.argv[1]), int(sys.argv[2]), each)
