"""Figures in one style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

REACH = 3.4
STYLE = {"axes.titlesize": 8, "axes.labelsize": 8, "font.size": 8}


class Learned(NamedTuple):
    """A density on the grid of :func:`grid`, and samples of it."""

    density: Tensor
    samples: Tensor


def densities(data: Mapping[str, Tensor], learned: Mapping[str, Mapping[str, Learned]]) -> Figure:
    """A row for each data set: its points, then for each method the density and as many samples."""
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    methods = list(next(iter(learned.values())))
    columns = 1 + 2 * len(methods)
    figure, axes = plt.subplots(
        len(data), columns, figsize=(1.15 * columns, 1.15 * len(data) + 0.4), squeeze=False, layout="constrained"
    )
    for row, (name, points) in zip(axes, data.items(), strict=True):
        _points(row[0], points)
        row[0].set_ylabel(name.replace("_", " "))
        for number, found in enumerate(learned[name].values()):
            _image(row[1 + 2 * number], found.density)
            _points(row[2 + 2 * number], found.samples)
    axes[0, 0].set_title("data")
    for number, method in enumerate(methods):
        axes[0, 1 + 2 * number].set_title(f"{method}:\ndensity")
        axes[0, 2 + 2 * number].set_title("samples")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def sheet(rows: Mapping[str, Tensor]) -> Figure:
    """A row of images (n, 1, H, W) in [0, 1] for each name."""
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    figure, axes = plt.subplots(len(rows), 1, figsize=(7, 0.52 * len(rows)), squeeze=False, layout="constrained")
    for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        strip = np.concatenate([np.pad(image[0].numpy(), 1, constant_values=0.2) for image in images], 1)
        axis.imshow(strip, cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.spines[:].set_visible(False)
    return figure


def _image(axis: Any, density: Tensor) -> None:
    shown = density.numpy().T
    limit = float(np.quantile(shown, 0.995)) or 1.0
    axis.imshow(shown, origin="lower", extent=(-REACH, REACH) * 2, cmap="magma", vmin=0, vmax=limit)


def _points(axis: Any, points: Tensor) -> None:
    axis.scatter(*points.T, s=0.4, linewidths=0, color="#0072B2")
    axis.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
