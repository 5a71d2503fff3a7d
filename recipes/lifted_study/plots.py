"""Figures in one style; the colours can be told apart by colour-blind readers (Okabe and Ito)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from training import Run

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

COLOURS = ("#D55E00", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#0072B2", "#000000", "#7F7F7F")
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
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    return plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained", **options
    )


def curves(found: Mapping[str, Sequence[Run]], title: str, labels: tuple[str, str, str]) -> Figure:
    """Losses (logarithmic) and scores of all methods against iterations, means and extents over seeds.

    Args:
        found: Runs by method; Adam's are dashed, those for which no colour is left dotted.
        title: Of the figure.
        labels: Of the iterations, the loss and the score.
    """
    figure, ((left, right),) = panels(1, 2, 4.8, 3.9)
    for number, (name, runs) in enumerate(found.items()):
        line = "--" if "Adam" in name else "-" if number < len(COLOURS) else ":"
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": line}
        for axis, what in ((left, "loss"), (right, "score")):
            xs = [point.iteration for point in runs[0].points[1:]]
            values = [[getattr(run.at(x), what) for run in runs] for x in xs]
            axis.plot(xs, [statistics.fmean(v) for v in values], label=name, linewidth=1.4, **style)
            axis.fill_between(
                xs, [min(v) for v in values], [max(v) for v in values], color=style["color"], alpha=0.18, linewidth=0
            )
    for axis, label in ((left, labels[1]), (right, labels[2])):
        axis.set_xscale("log")
        axis.set_xlabel(labels[0])
        axis.set_title(label)
        axis.grid(color="#e6e6e6", linewidth=0.6)
    left.set_yscale("log")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(title, fontsize=10)
    return figure
