"""Figures in one style; the colours can be told apart by colour-blind readers (Okabe and Ito)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, nn

COLOURS = {
    "spline": "#0072B2", "ReLU": "#D55E00", "PReLU": "#E69F00", "absolute value": "#CC79A7", "GroupSort": "#009E73",
    "GroupSort, larger": "#56B4E9",
}  # fmt: skip
STYLE = {
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """A grid of axes, each of this size in inches."""
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def fits(networks: Mapping[tuple[str, str], nn.Module], target: Callable[[Tensor], Tensor]) -> Figure:
    """The target and what networks made of samples of it: rows are kinds of samples, columns activations."""
    kinds, names = (list(dict.fromkeys(key[i] for key in networks)) for i in (0, 1))
    figure, axes = panels(len(kinds), len(names), 2.4, 1.9, sharex=True, sharey=True)
    x = torch.linspace(-1, 1, 801)[:, None]
    for row, kind in zip(axes, kinds, strict=True):
        for axis, name in zip(row, names, strict=True):
            with torch.no_grad():
                axis.plot(x, target(x), color="#b0b0b0", linewidth=2.2)
                axis.plot(x, networks[kind, name](x), color=COLOURS[name], linewidth=1)
            axis.set_title(f"{name}, {kind}")
    return figure


def errors(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Errors of all seeds (dots) and their means (bars)."""
    figure, (row,) = panels(1, len(found), 4.2, 2.4, sharey=True)
    for axis, (kind, values) in zip(row, found.items(), strict=True):
        for place, (name, one) in enumerate(values.items()):
            axis.barh(place, statistics.fmean(one), color=COLOURS[name], alpha=0.45)
            axis.plot(one, [place] * len(one), "o", color=COLOURS[name], markersize=3.5)
        axis.set_yticks(range(len(values)), list(values))
        axis.set_xlabel("error")
        axis.set_title(kind)
    row[0].invert_yaxis()
    return figure


def certified(radii: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Share of test images that are right within a radius, by kind of network and activation."""
    figure, (row,) = panels(1, len(radii), 4.2, 2.9, sharey=True)
    for axis, (kind, found) in zip(row, radii.items(), strict=True):
        largest = max(float(values.quantile(0.995)) for values in found.values())
        x = torch.linspace(0, largest, 200)
        for name, values in found.items():
            axis.plot(x, (values[:, None] > x).float().mean(0), color=COLOURS[name], label=name, linewidth=1.4)
        axis.set_xlabel("certified l2 radius")
        axis.set_title(kind)
        axis.grid(color="#e6e6e6", linewidth=0.6)
    row[0].set_ylabel("accuracy")
    row[0].legend()
    return figure
