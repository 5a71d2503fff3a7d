"""Training by Lightning: checkpointed, resumable, on one process or on several."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.loggers import TensorBoardLogger

from morphlightning import SafeCheckpointIO
from morphlightning.callbacks import LearningCurves
from morphlightning.data import MNIST, FashionMNIST
from morphlightning.errors import DataError
from morphlightning.models.certified import OPTIMIZER, CertifiedClassifier

DATA = {"mnist": MNIST, "fashion": FashionMNIST}
RUN = "MORPHLIGHTNING_CERTIFIED_RUN"
"""Where the processes that help to train are told what to train."""


@dataclass(frozen=True)
class Setting:
    """What is trained and examined.

    Attributes:
        hidden: Widths of the hidden layers.
        epochs: Passes over the training images.
        lr: Learning rate at the start; it falls to 0 along a cosine.
        harden_at: Share of the training from which maxima are hard.
        beta: Inverse temperatures at the beginning and at the end of the soft part.
        train_eps: The margin asked for, over twice eps.
        max_shift: Pixels by which training images are moved.
        precision: Of the products behind log-sum-exp.
        batch: Images of a step, of all processes together.
        accelerator: As Lightning names it.
        seeds: One network for each.
        radii: Radii of certificates, in multiples of eps.
        images: Test images that are certified; None for all.
        attacked: How many of them are attacked.
        steps: Gradients of an attack.
        restarts: Starts of an attack.
        data_dir: Where the images are.
        dataset: Which images.
        eps: The radius that is trained for, of pixels in [0, 1].
    """

    hidden: tuple[int, ...] = (2048, 256)
    epochs: int = 200
    lr: float = 0.03
    harden_at: float = 0.7
    beta: tuple[float, float] = (10.0, 40.0)
    train_eps: float = 4 / 3
    max_shift: int = 1
    precision: str = "bfloat16"
    batch: int = 512
    accelerator: str = "cpu"
    seeds: tuple[int, ...] = (0,)
    radii: tuple[float, ...] = (1 / 3, 2 / 3, 1.0, 4 / 3)
    images: int | None = None
    attacked: int = 10_000
    steps: int = 40
    restarts: int = 2
    data_dir: str = "data"
    dataset: str = "mnist"
    eps: float = 0.3


PRESETS = {
    "tiny": Setting(hidden=(32,), epochs=1, images=200, attacked=50, steps=5, restarts=1),
    "small": Setting(),
    "gpu": Setting(
        hidden=(5120, 5120, 5120, 5120),
        epochs=1500,
        harden_at=0.95,
        accelerator="gpu",
        seeds=(0, 1, 2, 3, 4),
        steps=100,
        restarts=5,
    ),
}


def setting(chosen: argparse.Namespace) -> Setting:
    """The preset, with what the command line says."""
    given = {"epochs": chosen.epochs, "seeds": tuple(chosen.seeds) if chosen.seeds else None}
    where = {"data_dir": chosen.data_dir, "dataset": chosen.dataset, "eps": chosen.eps}
    return replace(PRESETS[chosen.preset], **where, **{name: value for name, value in given.items() if value})


def write(setting: Setting, folder: Path) -> None:
    """Keep the settings of a run for its resumption."""
    (folder / "setting.json").write_text(json.dumps(asdict(setting), indent=2))


def read(folder: Path) -> Setting:
    """The settings that a run was started with."""
    path = folder / "setting.json"
    if not path.is_file():
        raise DataError(f"--resume {folder}: there is no setting.json; give the folder that a run of this recipe wrote")
    return Setting(**{name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(path.read_text()).items()})


def data(setting: Setting, processes: int = 1) -> L.LightningDataModule:
    """The images; none is held back, as nothing is chosen by them."""
    module: Any = DATA[setting.dataset]
    return module(setting.data_dir, batch_size=max(1, setting.batch // processes), val_fraction=0.0)  # type: ignore[no-any-return]


def build(setting: Setting, seed: int) -> CertifiedClassifier:
    """The network of a seed, untrained."""
    torch.manual_seed(seed)
    return CertifiedClassifier(
        hidden=setting.hidden,
        eps=setting.eps,
        train_eps=setting.train_eps * setting.eps,
        beta=setting.beta,
        harden_at=setting.harden_at,
        max_shift=setting.max_shift,
        precision=setting.precision,
        optimizer=OPTIMIZER | {"lr": setting.lr},
    )


def train(setting: Setting, seed: int, run: Path) -> tuple[CertifiedClassifier, float]:
    """The trained network and the seconds it took; goes on from the last checkpoint of ``run``, if there is one."""
    os.environ[RUN] = json.dumps({"run": str(run), "seed": seed, "setting": asdict(setting)})
    model, last, timer = build(setting, seed), run / "last.ckpt", Timer()
    trainer = _trainer(setting, run, timer)
    trainer.fit(model, data(setting, trainer.world_size), ckpt_path=last if last.is_file() else None, weights_only=True)
    return model.cpu().eval(), timer.time_elapsed("train")


def is_helper() -> bool:
    """Whether this process was started by another one, to train with it."""
    return RUN in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


def help_out() -> None:
    """Train what the first process trains."""
    told = json.loads(os.environ[RUN])
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in told["setting"].items()}
    train(Setting(**values), told["seed"], Path(told["run"]))


def _trainer(setting: Setting, run: Path, timer: Timer) -> L.Trainer:
    saving = ModelCheckpoint(run, "last", every_n_epochs=1, enable_version_counter=False, save_on_train_epoch_end=True)
    callbacks: list[Callback] = [saving, timer, LearningCurves()]
    return L.Trainer(
        max_epochs=setting.epochs,
        accelerator=setting.accelerator,
        devices="auto" if setting.accelerator == "gpu" else 1,
        strategy="ddp" if setting.accelerator == "gpu" and torch.cuda.device_count() > 1 else "auto",
        logger=TensorBoardLogger(run.parent, name=run.name, version=""),
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
        enable_model_summary=False,
        limit_val_batches=0,
    )
