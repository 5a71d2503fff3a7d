"""Inputs, outputs and targets of an autoencoder, side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from morphlightning.callbacks.figures.base import (
    MEDIUM,
    SIGNED,
    SMALL,
    FigureCallback,
    caption_of,
    colorbar,
    grid,
    moment_of,
    pair_of,
    stage_of,
    unobserved,
)
from morphlightning.errors import ConfigError

Samples = tuple[Tensor, Tensor, Tensor]


class Reconstructions(FigureCallback):
    """Draws input, output, target and error of the first samples of validation and test.

    Batches are (input, target), images of one shape (B, C, H, W), and the module's ``forward`` gives the output. Grey
    for one channel, colour for three; of other numbers the first channel. Above each column stands the peak
    signal-to-noise ratio in dB, of the input and of the output, both clipped to the range of the data. The error is
    output minus target, averaged over channels.

    Costs one forward pass of ``n`` samples a validation. See :class:`FigureCallback` for where the figures go.

    Args:
        n: Number of samples, from the first batch of the first loader (fewer if that batch is smaller).
        every_n_epochs: Draw after each such number of epochs, if there is a validation; the last is always drawn.
        data_range: Value of white; black is 0.

    Raises:
        ConfigError: An argument is out of its range; or, from the hooks, batches or outputs are no such images.
    """

    def __init__(self, n: int = 8, every_n_epochs: int = 1, data_range: float = 1.0) -> None:
        super().__init__(every_n_epochs)
        if n < 1:
            raise ConfigError(f"Reconstructions: n must be 1 or more, got {n}")
        if not 0 < data_range < float("inf"):
            raise ConfigError(f"Reconstructions: data_range must be a finite number above 0, got {data_range}")
        self.n, self.data_range = n, data_range
        self._pending: tuple[str, Samples] | None = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Reconstruct the first samples; also in the sanity check, so that what does not fit is found early."""
        if batch_idx or dataloader_idx:
            return
        samples = self._reconstruct(trainer, pl_module, batch)  # on every process: a sharded model needs them all
        if not trainer.sanity_checking:
            self._pending = (moment_of(trainer), samples)

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, now and again."""
        if self.due(trainer):
            self._draw_pending(trainer, stage_of(trainer))

    on_test_end = on_validation_end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation's, unless that was done."""
        self._draw_pending(trainer, "val")

    def _reconstruct(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Samples:
        inputs, target = (part[: self.n] for part in pair_of(self, batch))
        with unobserved(trainer, pl_module):
            output = pl_module(inputs)
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part) for part in (inputs, output, target)]
        if inputs.ndim != 4 or len(set(shapes)) > 1:
            raise ConfigError(
                f"Reconstructions: input, output and target are {shapes[0]}, {shapes[1]} and {shapes[2]}; expected "
                "images of one shape (B, C, H, W). This callback is for autoencoders; leave it out of other runs"
            )
        return tuple(part.detach().float().cpu().clone() for part in (inputs, output, target))  # type: ignore[return-value]

    def _draw_pending(self, trainer: Trainer, stage: str) -> None:
        pending, self._pending = self._pending, None
        if pending is None or not trainer.is_global_zero:
            return
        moment, samples = pending
        title = ", ".join(filter(None, [f"Reconstructions, {stage}", caption_of(moment)]))
        self.publish(trainer, f"reconstructions/{stage}", draw_samples(*samples, self.data_range, title), moment)


def draw_samples(inputs: Tensor, output: Tensor, target: Tensor, data_range: float = 1.0, title: str = "") -> Figure:
    """Figure of input, output, target and error, one column a sample.

    Args:
        inputs: Images (n, C, H, W).
        output: Images of that shape.
        target: Images of that shape.
        data_range: Value of white.
        title: Title of the figure.
    """
    columns, ratio = len(inputs), min(2.0, max(0.5, inputs.shape[2] / inputs.shape[3]))
    across = 1.2 if columns <= 8 else max(0.8, 9.6 / columns)
    figure, axes = grid(4, columns, (across, across * ratio), (0.08, 0.22), (0.4, 0.9, 0.1, 0.6))
    error = (output - target).mean(1)
    limit = float(error.abs().nan_to_num().max()) or 1.0
    scale = Normalize(-limit, limit)
    for column in range(columns):
        given, made, wanted = (part[column] for part in (inputs, output, target))
        for row, image in enumerate((given, made, wanted)):
            axes[row, column].imshow(_displayable(image, data_range), cmap="gray", vmin=0, vmax=1)
        axes[3, column].imshow(error[column].numpy(), cmap=SIGNED, norm=scale)
        axes[0, column].set_title(_psnr(given, wanted, data_range), fontsize=SMALL, pad=3)
        axes[1, column].set_title(_psnr(made, wanted, data_range), fontsize=SMALL, pad=3)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, name in zip(axes[:, 0], ("input", "output", "target", "error"), strict=True):
        axis.set_ylabel(name, fontsize=MEDIUM)
    colorbar(figure, axes[3], scale, "error")
    title = title if columns > 2 else title.replace(", epoch", "\nepoch")  # one image a batch: a narrow figure
    figure.suptitle(title, y=1 - 0.08 / figure.get_figheight(), va="top", fontsize=MEDIUM)
    return figure


def _displayable(image: Tensor, data_range: float) -> np.ndarray[Any, Any]:
    """(H, W) grey or (H, W, 3) colour in [0, 1]; of other numbers of channels the first."""
    shown = (image / data_range).clamp(0, 1).nan_to_num()
    return (shown.movedim(0, -1) if len(shown) == 3 else shown[0]).numpy()


def _psnr(image: Tensor, target: Tensor, data_range: float) -> str:
    image, target = image.clamp(0, data_range), target.clamp(0, data_range)
    if torch.equal(image, target):
        return "exact"
    return f"{float(peak_signal_noise_ratio(image, target, data_range=data_range)):.1f} dB"
