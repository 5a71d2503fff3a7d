"""Training by Lightning, which can be broken off and resumed, and the curves it leaves."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from methods import LEVELS, Method

from morphlightning.data import ImageFolderDenoising

VALIDATION_SHARE = 0.02
POINTS = 8
"""Points of a learning curve."""


@dataclass(frozen=True)
class Setting:
    """Where images are and what trains.

    Attributes:
        data: The folder with Train400 and Set12.
        folder: Where results go.
        seed: Of weights, order and noise.
        trainer: Settings of Lightning's Trainer, such as accelerator, devices and precision.
        shown: Whether to show progress.
    """

    data: Path
    folder: Path
    seed: int = 0
    trainer: dict[str, Any] | None = None
    shown: bool = True

    def images(self, **settings: Any) -> ImageFolderDenoising:
        """Training on Train400, less a few images to validate; test on Set12."""
        return ImageFolderDenoising(
            self.data / "Train400",
            test_root=self.data / "Set12",
            val_fraction=VALIDATION_SHARE,
            seed=self.seed,
            **{"noise": LEVELS, "eval_noise": 25 / 255, "stride": 10, "symmetries": True, **settings},
        )


class Seconds(Callback):
    """Logs the processor time of training, without validation, over interruptions."""

    def __init__(self) -> None:
        self.spent, self.began = 0.0, 0.0

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.began = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.spent += time.process_time() - self.began
        module.log("seconds", self.spent)

    def state_dict(self) -> dict[str, float]:
        return {"spent": self.spent}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.spent = state["spent"]


def train(method: Method, setting: Setting) -> L.LightningModule:
    """Train a method, go on where it was broken off, or take what is finished."""
    torch.manual_seed(setting.seed)
    model = method.make()
    folder = setting.folder / method.name
    last = folder / "last.ckpt"
    if not last.exists() or _read(last)["global_step"] < method.steps:
        every = max(1, method.steps // POINTS)
        keep = ModelCheckpoint(folder, "last", every_n_train_steps=every, enable_version_counter=False)
        trainer = L.Trainer(
            max_steps=method.steps,
            logger=CSVLogger(folder, "", flush_logs_every_n_steps=1),
            callbacks=[Seconds(), keep, *([TQDMProgressBar()] if setting.shown else [])],
            enable_progress_bar=setting.shown,
            enable_model_summary=False,
            val_check_interval=every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=max(1, every // 10),
            **(setting.trainer or {}),
        )
        batch = max(1, method.batch // trainer.world_size)
        data = setting.images(patch_size=method.patch, batch_size=batch, noise=method.noise)
        trainer.fit(model, data, ckpt_path=last if last.exists() else None, weights_only=False)
    model.load_state_dict(_read(last)["state_dict"])
    return model.cpu().eval()


def _read(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return checkpoint


def curve(method: Method, setting: Setting) -> list[dict[str, float]]:
    """Steps, seconds and PSNR on the validation images."""
    rows: list[dict[str, str]] = []
    for path in sorted((setting.folder / method.name).glob("version_*/metrics.csv")):
        rows += csv.DictReader(path.open())
    rows.sort(key=lambda row: int(row["step"]))
    points, spent = [], 0.0
    for row in rows:
        spent = float(row.get("seconds") or spent)
        if row.get("val/psnr"):
            points.append({"step": int(row["step"]) + 1, "seconds": spent, "psnr": float(row["val/psnr"])})
    return points
