"""``morphlightning demo``: the main job on data that comes with scikit-learn."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from morphlightning.checkpoint_io import SafeCheckpointIO
from morphlightning.cli.training import ProgressBar, figure_callbacks, run_folder
from morphlightning.data import Digits
from morphlightning.models import MorphologicalAutoencoder, MorphologicalClassifier, PluginTraining

IN_SHAPE = (1, 8, 8)
OPTIMIZER = {"name": "adam", "lr": 1e-2, "schedule": "one_cycle"}


def classifier() -> tuple[PluginTraining, Digits]:
    """Two stages of convolution and morphological pooling, linear head."""
    model = MorphologicalClassifier(IN_SHAPE, 10, channels=(32, 64), optimizer=OPTIMIZER)
    return model, Digits(batch_size=32)


def denoiser(seed: int) -> tuple[PluginTraining, Digits]:
    """Convolutional autoencoder with morphological pooling, on digits with Gaussian noise."""
    model = MorphologicalAutoencoder(IN_SHAPE, channels=(16, 32), optimizer=OPTIMIZER)
    return model, Digits(batch_size=32, task="denoising", noise=0.2, seed=seed)


def run_demo(run: str | None = None, epochs: int | None = None, seed: int = 0) -> int:
    """Train both models, print a table of test metrics and say where results are.

    Args:
        run: Folder for results, which must not exist; ``runs/demo-<time>`` if None.
        epochs: Epochs of each model.
        seed: Seed of weights, splits, order and noise.

    Raises:
        RunExistsError: The folder exists.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # the table says what there is to say
    console = Console()
    folder = run_folder(run, "demo")
    console.print(f"Training two morphological networks on handwritten digits; results go to {folder}")
    table = Table(title="Test set", box=None, header_style="bold")
    for column in ("model", "metric", "value", "parameters", "seconds"):
        table.add_column(column, justify="left" if column in ("model", "metric") else "right")
    for name, default_epochs in (("classifier", 12), ("denoiser", 12)):
        L.seed_everything(seed, workers=True, verbose=False)
        model, data = classifier() if name == "classifier" else denoiser(seed)
        began = time.perf_counter()
        metrics = _train(model, data, folder / name, epochs or default_epochs)
        seconds = time.perf_counter() - began
        size = sum(p.numel() for p in model.parameters())
        for number, (metric, value) in enumerate(metrics.items()):
            beside = (f"{size:,}", f"{seconds:.0f}") if number == 0 else ("", "")
            table.add_row(name if number == 0 else "", metric, f"{value:.4f}", *beside)
    console.print(table)
    console.print(f"\nFigures: {folder}/*/figures/*.png")
    console.print(f"Curves and figures in a browser: tensorboard --logdir {folder}")
    console.print(f"Checkpoints, for MorphologicalClassifier.load_from_checkpoint: {folder}/*/checkpoints/")
    return 0


def _train(model: PluginTraining, data: Digits, folder: Path, epochs: int) -> dict[str, float]:
    """Fit and test one model; the test metrics by name."""
    checkpoints = ModelCheckpoint(filename="best-{epoch}", monitor="val/loss", save_last=True)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=TensorBoardLogger(folder.parent, name="", version=folder.name),
        callbacks=[ProgressBar(), checkpoints, *figure_callbacks(model)],
        plugins=[SafeCheckpointIO()],
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(model, data)
    (metrics,) = trainer.test(model, data, verbose=False)
    return {name.removeprefix("test/"): value for name, value in metrics.items()}
