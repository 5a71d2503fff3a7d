"""Learned structuring functions as images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from morphlightning.callbacks.figures.base import (
    MEDIUM,
    SIGNED,
    SMALL,
    FigureCallback,
    caption_of,
    colorbar,
    grid,
    moment_of,
)
from morphlightning.errors import ConfigError
from morphlightning.layers import MorphLayer
from morphlightning.layers.windows import WindowLayer

Array = np.ndarray[Any, Any]
MISSING: dict[str, Any] = {"facecolor": "0.85", "hatch": "/////", "edgecolor": "0.45", "linewidth": 0.0}
COLUMNS = 8  # tiles of a row
TILE, WIDTH = 1.0, 5.5  # inches of a tile, and of the narrowest figure, so that titles fit


class StructuringFunctions(FigureCallback):
    """Draws the weights of every :class:`morphlightning.layers.MorphLayer`, one figure a layer.

    Windows are drawn as small images (1-D ones as stems, of 3-D ones the middle slice), with the origin marked. Dense
    layers that have as many inputs as an image has pixels are taken to see the image, and each unit's weights are drawn
    in its shape (``in_shape`` of the module); other dense layers are one heat map, units by inputs. The colours are
    symmetric about 0 and shared by all of a layer; missing weights (-inf) are hatched.

    Drawn before the first step, after every ``every_n_epochs`` epochs, and at the end of training. A model without such
    a layer gets a warning and no figure. See :class:`FigureCallback` for where the figures go.

    Args:
        every_n_epochs: Draw after each such number of epochs.
        max_units: Draw at most so many structuring functions of a layer, the first ones; a heat map is drawn whole.

    Raises:
        ConfigError: An argument is below 1.
    """

    def __init__(self, every_n_epochs: int = 5, max_units: int = 16) -> None:
        super().__init__(every_n_epochs)
        if max_units < 1:
            raise ConfigError(f"StructuringFunctions: max_units must be 1 or more, got {max_units}")
        self.max_units = max_units
        self._drawn_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the initial weights."""
        self._drawn_at = None
        if not any(_layers(pl_module)):
            rank_zero_warn(
                f"StructuringFunctions: {type(pl_module).__name__} holds no morphlightning.layers.MorphLayer, so there "
                "is nothing to draw."
            )
        if trainer.global_step == 0:
            self._draw(trainer, pl_module, moment_of(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the weights, now and again."""
        if self.due(trainer):
            self._draw(trainer, pl_module, moment_of(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last weights, unless that was just done."""
        if self._drawn_at != trainer.global_step:
            self._draw(trainer, pl_module, moment_of(trainer, training_ended=True))

    def _draw(self, trainer: Trainer, pl_module: LightningModule, moment: str) -> None:
        self._drawn_at = trainer.global_step
        if not trainer.is_global_zero:
            return
        in_shape = tuple(getattr(pl_module, "in_shape", ()))
        for name, layer in _layers(pl_module):
            figure = draw_layer(name, layer, in_shape, self.max_units, caption_of(moment))
            self.publish(trainer, f"structuring_functions/{name}", figure, moment)


class Tiles(NamedTuple):
    """Structuring functions to be drawn: (units, channels, *space), and the index of their origin in space."""

    weight: Array
    origin: tuple[int, ...] | None


def draw_layer(
    name: str, layer: MorphLayer, in_shape: tuple[int, ...] = (), max_units: int = 16, when: str = ""
) -> Figure:
    """Figure of a layer's weights.

    Args:
        name: The layer's name, for the title.
        layer: The layer.
        in_shape: Shape (channels, *space) of the images that the network sees, if there are any.
        max_units: How many structuring functions to draw at most.
        when: The moment, for the title.
    """
    weight = torch.where(layer.mask, layer.weight, math.nan).detach().float().cpu()
    tiles = _tiles(layer, weight, in_shape)
    present = weight[weight.isfinite()]
    limit = float(present.abs().max()) if present.numel() else 0.0
    norm = Normalize(-(limit or 1.0), limit or 1.0)
    figure = _draw_matrix(weight.flatten(1).numpy(), norm) if tiles is None else _draw_tiles(tiles, norm, max_units)
    size = " x ".join(map(str, layer.weight.shape))
    title = f"{name or 'network'}: {type(layer).__name__} ({layer.op}), weight {size}"
    top = 1 - 0.08 / figure.get_figheight()
    figure.suptitle(f"{title}\n{when}" if when else title, y=top, va="top", fontsize=MEDIUM)
    return figure


def _layers(module: torch.nn.Module) -> Iterator[tuple[str, MorphLayer]]:
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, MorphLayer))


def _tiles(layer: MorphLayer, weight: Tensor, in_shape: tuple[int, ...]) -> Tiles | None:
    """The weights as images or signals, None where they are neither."""
    if isinstance(layer, WindowLayer):
        return Tiles(weight.numpy(), _origin(layer))
    inputs = math.prod(weight.shape[1:])
    for shape in (in_shape, (1, *in_shape[-2:])):
        if len(shape) >= 2 and inputs == math.prod(shape):
            return Tiles(weight.reshape(-1, *shape).numpy(), None)
    return None


def _origin(layer: WindowLayer) -> tuple[int, ...]:
    """The tap at the output's own position: by convention k // 2; pooling windows start there, less their padding."""
    if layer.op != "pooling":
        return tuple(k // 2 for k in layer.kernel_size)
    window = layer.windowing.window(layer.kernel_size, layer.in_channels, reflected=False)
    return tuple(before // spacing for before, spacing in zip(window.before, window.spacing, strict=True))


def _draw_tiles(tiles: Tiles, norm: Normalize, max_units: int) -> Figure:
    weight, origin = tiles
    space, notes = weight.shape[2:], []
    if len(space) == 3:
        middle = space[0] // 2
        weight, origin, space = weight[:, :, middle], origin and origin[1:], space[1:]
        notes.append(f"slice {middle} along depth")
    units, channels = weight.shape[:2]
    shown, rows, columns = _choose(units, channels, max_units)
    figure, axes = _tile_grid(rows, columns, space)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (unit, channel) in zip(axes.flat, shown, strict=False):
        axis.set_title(f"{unit}" if channels == 1 else f"{channel} → {unit}", fontsize=SMALL, pad=2)
        if len(space) == 1:
            _stem(axis, weight[unit, channel], origin[0] if origin else 0, norm.vmax or 1.0)
        else:
            _image(axis, weight[unit, channel], norm)
            _mark_origin(axis, origin, space)
    if len(space) > 1:
        colorbar(figure, axes, norm, "weight")
        notes += ["○ origin"] if origin else [f"each unit's weights as an image, {space[0]} x {space[1]}"]
    elif origin:
        notes.append("over the offset from the origin")
    what = "units" if channels == 1 else "input channel → unit"
    _caption(figure, [f"{what}, shown: {len(shown)} of {units * channels}", *notes], bool(np.isnan(weight).any()))
    return figure


def _choose(units: int, channels: int, most: int) -> tuple[list[tuple[int, int]], int, int]:
    """Which (unit, channel) to show, on how many rows and columns; one row for each of several channels."""
    if channels == 1:
        shown = [(unit, 0) for unit in range(min(units, most))]
        return shown, math.ceil(len(shown) / COLUMNS), min(len(shown), COLUMNS)
    columns = min(units, COLUMNS, most // min(channels, math.isqrt(most)))
    rows = min(channels, most // columns)
    return [(unit, channel) for channel in range(rows) for unit in range(columns)], rows, columns


def _tile_grid(rows: int, columns: int, space: tuple[int, ...]) -> tuple[Figure, Array]:
    signals, gap = len(space) == 1, (0.1, 0.3)
    if signals:
        cell = (1.3, 1.0)
    else:
        width, height = (TILE * max(0.35, extent / max(space)) for extent in reversed(space))  # long windows: narrow
        cell = (width, height)
    inner = columns * (cell[0] + gap[0])
    side = max(0.2, (WIDTH - inner) / 2)
    margins = (side + 0.4 * signals, max(side, 0.3 if signals else 0.9), 0.4 + 0.2 * signals, 0.75)
    return grid(rows, columns, cell, gap, margins, sharex=signals, sharey=signals)


def _draw_matrix(weight: Array, norm: Normalize) -> Figure:
    units, inputs = weight.shape
    cell = (min(9.0, max(4.0, inputs * 0.08)), min(6.0, max(2.0, units * 0.08)))
    figure, axes = grid(1, 1, cell, (0, 0), (0.7, 0.9, 0.75 if np.isnan(weight).any() else 0.55, 0.65))
    axis = axes[0, 0]
    _image(axis, weight, norm, aspect="auto")
    for side in (axis.xaxis, axis.yaxis):
        side.set_visible(True)
        side.set_major_locator(MaxNLocator(8, integer=True))
    axis.tick_params(labelsize=SMALL)
    axis.set_xlabel("input", fontsize=SMALL)
    axis.set_ylabel("unit", fontsize=SMALL)
    colorbar(figure, axes, norm, "weight")
    _caption(figure, [], bool(np.isnan(weight).any()))
    return figure


def _image(axis: Axes, values: Array, norm: Normalize, aspect: Literal["equal", "auto"] = "equal") -> None:
    axis.patch.set(**MISSING)
    colors = colormaps[SIGNED].with_extremes(bad=(0, 0, 0, 0))
    axis.imshow(np.ma.masked_invalid(values), cmap=colors, norm=norm, aspect=aspect)
    axis.xaxis.set_visible(False)
    axis.yaxis.set_visible(False)


def _mark_origin(axis: Axes, origin: tuple[int, ...] | None, size: tuple[int, ...]) -> None:
    if origin is None or any(place >= extent for place, extent in zip(origin, size, strict=True)):
        return
    axis.plot(origin[1], origin[0], "o", markersize=4, markerfacecolor="white", markeredgecolor="black")


def _stem(axis: Axes, values: Array, origin: int, limit: float) -> None:
    offset = np.arange(len(values)) - origin
    here = np.isfinite(values)
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.axvline(0, color="0.6", linewidth=0.8, linestyle=":")
    axis.vlines(offset[here], 0, values[here], color="#0072B2", linewidth=1.2)
    axis.plot(offset[here], values[here], "o", color="#0072B2", markersize=3)
    for place in offset[~here]:
        axis.axvspan(place - 0.5, place + 0.5, **MISSING)
    axis.set(xlim=(offset[0] - 0.6, offset[-1] + 0.6), ylim=(-1.08 * limit, 1.08 * limit))
    axis.tick_params(labelsize=SMALL - 1)


def _caption(figure: Figure, parts: list[str], missing: bool) -> None:
    parts = [*parts, "hatched: missing (-inf)"] if missing else parts
    figure.text(0.5, 0.08 / figure.get_figheight(), "; ".join(parts), ha="center", va="bottom", fontsize=SMALL)
