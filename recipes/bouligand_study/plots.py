"""Figures in one style; the colours can be told apart by colour-blind readers (Okabe and Ito)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)
MARKERS = "osD^vX"
STYLE = {
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """A grid of axes, each of this size in inches."""
    plt.rcParams.update(STYLE)
    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def save(figure: Figure, path: Path) -> None:
    """Write a figure and release it."""
    figure.savefig(path, dpi=130)
    plt.close(figure)


def bars(axis: Any, labels: Sequence[str], spreads: Sequence[Any], colours: Sequence[str]) -> None:
    """Horizontal bars with their deviation and their number, the first one on top."""
    _lines(axis, labels)
    for position, spread, colour in zip(range(len(labels))[::-1], spreads, colours, strict=False):
        axis.barh(position, spread.mean, xerr=spread.deviation, color=colour, height=0.72, ecolor="#404040")
        beside = (spread.mean + spread.deviation, position)
        axis.annotate(f"{spread.mean:.1f}", beside, (4, 0), textcoords="offset points", va="center", fontsize=8)


def dots(axis: Any, labels: Sequence[str], spreads: Sequence[Any], colours: Sequence[str]) -> None:
    """Means and deviations on a logarithmic axis, the first one on top."""
    _lines(axis, labels)
    axis.set_xscale("log")
    axis.grid(color="#e0e0e0", linewidth=0.6)
    axis.set_axisbelow(True)
    for position, spread, colour in zip(range(len(labels))[::-1], spreads, colours, strict=True):
        low = min(spread.deviation, 0.9 * spread.mean)  # keeps the bar on the axis
        axis.errorbar(
            spread.mean, position, xerr=[[low], [spread.deviation]], fmt="o", color=colour, markersize=6, capsize=2
        )


def _lines(axis: Any, labels: Sequence[str]) -> None:
    axis.set_yticks(range(len(labels))[::-1], labels)
    axis.set_ylim(-0.6, len(labels) - 0.4)
