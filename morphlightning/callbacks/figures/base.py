"""What all callbacks that draw have in common: when, where to, and without touching the training."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from morphlightning.errors import ConfigError

DPI = 120
SIGNED = "RdBu_r"  # the colour map of signed values, told apart by all kinds of colour vision
SMALL, MEDIUM = 8, 10  # font sizes in points


class FigureCallback(Callback):
    """Base of the callbacks that draw: each figure becomes a PNG file and an image in TensorBoard.

    Files are ``<run folder>/figures/<name>-epoch=<epoch>-step=<step>.png``, numbered as Lightning numbers checkpoints;
    outside of fit ``<name>.png``. The run folder is ``trainer.log_dir``: that of the first logger, or
    ``default_root_dir`` without one. A file that is there already is kept, and the new one gets ``-v1``, ``-v2``, ...
    Each file is whole or absent. Every TensorBoardLogger of the Trainer gets the image under ``figures/<name>``.

    Process 0 alone draws and writes. A file that cannot be written (full disk, no permission) is a warning and does not
    stop the run. ``fast_dev_run`` draws but writes no file. Training is not changed: no random number is drawn, nothing
    is logged as a metric, and the module runs in the mode and without the gradients that Lightning set for evaluation.

    Args:
        every_n_epochs: Draw after each such number of epochs; the last of ``max_epochs`` is always drawn.

    Raises:
        ConfigError: every_n_epochs is below 1.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ConfigError(f"{type(self).__name__}: every_n_epochs must be 1 or more, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self._folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run folder, on all processes: ``log_dir`` is a broadcast."""
        log_dir = trainer.log_dir or trainer.default_root_dir
        self._folder = None if trainer.fast_dev_run else Path(log_dir) / "figures"  # type: ignore[attr-defined]

    def due(self, trainer: Trainer) -> bool:
        """Whether the current epoch's figure is to be drawn; the same on all processes."""
        if trainer.state.fn != TrainerFn.FITTING:
            return True
        epoch = trainer.current_epoch + 1
        return epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs

    def publish(self, trainer: Trainer, name: str, figure: Figure, moment: str) -> None:
        """Write a figure to its file and to TensorBoard; to be called by process 0 alone.

        Args:
            trainer: The Trainer.
            name: What is drawn, a name for files and tags.
            figure: The figure.
            moment: What :func:`moment_of` says.
        """
        pixels = render(figure)
        if self._folder is not None:
            file_name = "-".join(filter(None, (name.replace("/", "-"), moment)))
            try:
                write_png(self._folder, file_name, pixels)
            except OSError as error:
                rank_zero_warn(
                    f"{type(self).__name__}: the figure {file_name}.png was not written to {self._folder} ({error}). "
                    "The run goes on; free some space or see to the folder's permissions."
                )
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # add_figure would draw a second time, and touch pyplot and its global state
                logger.experiment.add_image(f"figures/{name}", pixels, trainer.global_step, dataformats="HWC")


class TrainingFigures(FigureCallback, ABC):
    """Draws what a module has learned: before the first step, now and again, and at the end of training."""

    def __init__(self, every_n_epochs: int = 5) -> None:
        super().__init__(every_n_epochs)
        self._drawn_at: int | None = None

    @abstractmethod
    def draw(self, trainer: Trainer, pl_module: LightningModule, moment: str) -> None:
        """Publish the figures of a moment; called by process 0 alone."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what training starts from."""
        self._drawn_at = None
        if trainer.global_step == 0:
            self._draw(trainer, pl_module, moment_of(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, now and again."""
        if self.due(trainer):
            self._draw(trainer, pl_module, moment_of(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was learned last, unless that was just done."""
        if self._drawn_at != trainer.global_step:
            self._draw(trainer, pl_module, moment_of(trainer, training_ended=True))

    def _draw(self, trainer: Trainer, pl_module: LightningModule, moment: str) -> None:
        self._drawn_at = trainer.global_step
        if trainer.is_global_zero:
            self.draw(trainer, pl_module, moment)


def moment_of(trainer: Trainer, training_ended: bool = False) -> str:
    """``epoch=<epoch>-step=<step>`` during a fit, counted from 0 as in the names of checkpoints; empty outside.

    Args:
        trainer: The Trainer.
        training_ended: Whether the last epoch is over, when Lightning's counter is one ahead.
    """
    if trainer.state.fn != TrainerFn.FITTING:
        return ""
    return f"epoch={trainer.current_epoch - training_ended:03d}-step={trainer.global_step:06d}"


def stage_of(trainer: Trainer) -> str:
    """``"val"`` or ``"test"``, the evaluation that is running."""
    return "test" if trainer.testing else "val"


def pair_of(owner: Callback, batch: Any) -> tuple[Tensor, Tensor]:
    """Input and target of a batch.

    Raises:
        ConfigError: The batch is something else.
    """
    if isinstance(batch, list | tuple) and len(batch) >= 2 and all(isinstance(part, Tensor) for part in batch[:2]):
        return batch[0], batch[1]
    parts = ", ".join(type(part).__name__ for part in batch) if isinstance(batch, list | tuple) else ""
    raise ConfigError(
        f"{type(owner).__name__}: a batch is {type(batch).__name__}{f' of {parts}' if parts else ''}, expected a pair "
        "of tensors (input, target). Let the data loader give pairs, or leave this callback out"
    )


def caption_of(moment: str) -> str:
    """``epoch 3, step 120`` for the moment ``epoch=003-step=000120``."""
    parts = (part.split("=") for part in moment.split("-") if part)
    return ", ".join(f"{name} {int(number)}" for name, number in parts)


@contextlib.contextmanager
def unobserved(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """A forward pass in the precision of the run, without gradients and with the random states put back at the end."""
    devices = [pl_module.device] if pl_module.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices, device_type="cuda"),
        torch.no_grad(),
        trainer.precision_plugin.forward_context(),
    ):
        yield


def grid(
    rows: int,
    columns: int,
    cell: tuple[float, float],
    gap: tuple[float, float],
    margins: tuple[float, float, float, float],
    **options: Any,
) -> tuple[Figure, np.ndarray[Any, Any]]:
    """Figure of rows by columns axes of equal size.

    All lengths in inches, which is several times cheaper than a layout engine.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        cell: Width and height of one of the axes.
        gap: Width and height between neighbours.
        margins: Left, right, bottom and top; the colour bar stands in the right one.
        **options: Options of ``Figure.subplots``.
    """
    left, right, bottom, top = margins
    inner = columns * cell[0] + (columns - 1) * gap[0], rows * cell[1] + (rows - 1) * gap[1]
    width, height = left + inner[0] + right, bottom + inner[1] + top
    figure = Figure(figsize=(width, height), dpi=DPI)
    spacing = {
        "left": left / width,
        "right": 1 - right / width,
        "bottom": bottom / height,
        "top": 1 - top / height,
        "wspace": gap[0] / cell[0],
        "hspace": gap[1] / cell[1],
    }
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=spacing, **options)
    return figure, axes


def colorbar(figure: Figure, axes: Any, norm: Normalize, label: str, colors: str | Colormap = SIGNED) -> None:
    """Colour bar in the margin at the right of ``axes``."""
    boxes = [axis.get_position(original=True) for axis in np.ravel(axes)]
    low, high, right = min(box.y0 for box in boxes), max(box.y1 for box in boxes), max(box.x1 for box in boxes)
    across, up = 1 / figure.get_figwidth(), 1 / figure.get_figheight()
    more = max(0.0, 0.7 * up - (high - low)) / 2  # what a row of thin images needs beyond its own height
    place = (right + 0.12 * across, low - more, 0.12 * across, high - low + 2 * more)
    bar = figure.colorbar(ScalarMappable(norm, colors), cax=figure.add_axes(place))
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    if not isinstance(norm, LogNorm):
        bar.locator = MaxNLocator(5)
        bar.update_ticks()


def render(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels (height, width, 3) of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_png(folder: Path, name: str, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Path:
    """Write ``<folder>/<name>.png``, whole or not at all, and over no other file.

    Raises:
        OSError: The folder or the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, version = folder / f"{name}.png", 0
    while target.exists():
        version += 1
        target = folder / f"{name}-v{version}.png"
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    try:
        imsave(temporary, pixels, format="png", dpi=DPI)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
