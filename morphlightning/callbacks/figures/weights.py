"""Numbers of a layer's weights, drawn in the weights' places; shared by all figures of weights."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from morphlightning.callbacks.figures.base import MEDIUM, SMALL, colorbar, grid
from morphlightning.layers import MorphLayer
from morphlightning.layers.windows import WindowLayer

Array = np.ndarray[Any, Any]
MISSING: dict[str, Any] = {"facecolor": "0.85", "hatch": "/////", "edgecolor": "0.45", "linewidth": 0.0}
COLUMNS = 8  # tiles of a row
TILE, WIDTH = 1.0, 5.5  # inches of a tile, and of the narrowest figure, so that titles fit


@dataclass(frozen=True)
class Scale:
    """What the colours mean; what is missing is transparent, so that its pattern is seen."""

    norm: Normalize
    colors: Colormap
    label: str


class Tiles(NamedTuple):
    """Numbers to be drawn: (units, channels, *space), and the index of the window's origin in space."""

    values: Array
    origin: tuple[int, ...] | None


def layers_of(module: torch.nn.Module) -> Iterator[tuple[str, MorphLayer]]:
    """Names and layers whose weights can be drawn."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, MorphLayer))


def title(figure: Figure, name: str, layer: MorphLayer, more: str) -> None:
    """Say above a figure which layer it shows; ``more`` on a second line."""
    size = " x ".join(map(str, layer.weight.shape))
    first = f"{name or 'network'}: {type(layer).__name__} ({layer.op}), weight {size}"
    top = 1 - 0.08 / figure.get_figheight()
    figure.suptitle(f"{first}\n{more}" if more else first, y=top, va="top", fontsize=MEDIUM)


def tiles_of(layer: MorphLayer, values: Tensor, in_shape: tuple[int, ...]) -> Tiles | None:
    """Numbers of the shape of the weight as images or signals, None where they are neither."""
    if isinstance(layer, WindowLayer):
        return Tiles(values.numpy(), _origin(layer))
    inputs = math.prod(values.shape[1:])
    for shape in (in_shape, (1, *in_shape[-2:])):
        if len(shape) >= 2 and inputs == math.prod(shape):
            return Tiles(values.reshape(-1, *shape).numpy(), None)
    return None


def _origin(layer: WindowLayer) -> tuple[int, ...]:
    """The tap at the output's own position: by convention k // 2; pooling windows start there, less their padding."""
    if layer.op != "pooling":
        return tuple(k // 2 for k in layer.kernel_size)
    window = layer.windowing.window(layer.kernel_size, layer.in_channels, reflected=False)
    return tuple(before // spacing for before, spacing in zip(window.before, window.spacing, strict=True))


def draw_tiles(tiles: Tiles, scale: Scale, max_units: int, notes: tuple[str, ...] = ()) -> Figure:
    """Figure of the first ``max_units`` images or signals."""
    values, origin = tiles
    space, remarks = values.shape[2:], []
    if len(space) == 3:
        middle = space[0] // 2
        values, origin, space = values[:, :, middle], origin and origin[1:], space[1:]
        remarks.append(f"slice {middle} along depth")
    units, channels = values.shape[:2]
    shown, rows, columns = choose(units, channels, max_units)
    figure, axes = _tile_grid(rows, columns, space)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (unit, channel) in zip(axes.flat, shown, strict=False):
        axis.set_title(f"{unit}" if channels == 1 else f"{channel} → {unit}", fontsize=SMALL, pad=2)
        if len(space) == 1:
            _stem(axis, values[unit, channel], origin[0] if origin else 0, scale.norm.vmax or 1.0)
        else:
            _image(axis, values[unit, channel], scale)
            _mark_origin(axis, origin, space)
    if len(space) > 1:
        colorbar(figure, axes, scale.norm, scale.label, scale.colors)
        remarks += ["○ origin"] if origin else [f"each unit's weights as an image, {space[0]} x {space[1]}"]
    elif origin:
        remarks.append("over the offset from the origin")
    what = "units" if channels == 1 else "input channel → unit"
    remarks.insert(0, f"{what}, shown: {len(shown)} of {units * channels}")
    _caption(figure, [*remarks, *notes], bool(np.isnan(values).any()))
    return figure


def choose(units: int, channels: int, most: int) -> tuple[list[tuple[int, int]], int, int]:
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


def draw_matrix(values: Array, scale: Scale, notes: tuple[str, ...] = ()) -> Figure:
    """Figure of a heat map, units by inputs."""
    units, inputs = values.shape
    missing = bool(np.isnan(values).any())
    cell = (min(9.0, max(4.0, inputs * 0.08)), min(6.0, max(2.0, units * 0.08)))
    figure, axes = grid(1, 1, cell, (0, 0), (0.7, 0.9, 0.75 if missing or notes else 0.55, 0.65))
    axis = axes[0, 0]
    _image(axis, values, scale, aspect="auto")
    for side in (axis.xaxis, axis.yaxis):
        side.set_visible(True)
        side.set_major_locator(MaxNLocator(8, integer=True))
    axis.tick_params(labelsize=SMALL)
    axis.set_xlabel("input", fontsize=SMALL)
    axis.set_ylabel("unit", fontsize=SMALL)
    colorbar(figure, axes, scale.norm, scale.label, scale.colors)
    _caption(figure, list(notes), missing)
    return figure


def _image(axis: Axes, values: Array, scale: Scale, aspect: Literal["equal", "auto"] = "equal") -> None:
    axis.patch.set(**MISSING)
    axis.imshow(np.ma.masked_invalid(values), cmap=scale.colors, norm=scale.norm, aspect=aspect)
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
    text = textwrap.fill("; ".join(parts), int(16 * figure.get_figwidth()))  # characters of this size in an inch
    figure.text(0.5, 0.06 / figure.get_figheight(), text, ha="center", va="bottom", fontsize=SMALL)
