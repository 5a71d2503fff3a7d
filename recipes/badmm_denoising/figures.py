"""The figures: errors against iterations and seconds, and the denoised images side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from harness import Point, Trace
from images import Samples
from matplotlib.lines import Line2D
from study import Row
from torch import Tensor
from ways import LITERAL, MM, RECOMMENDED, TUNED, VALIDATION

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

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
BLUE, SKY, ORANGE, GREEN = "#0072B2", "#56B4E9", "#E69F00", "#009E73"
RED, GREY, PURPLE = "#D55E00", "#7F7F7F", "#CC79A7"
"""Can be told apart by colour-blind readers (Okabe and Ito)."""
LINES = {
    "SGD": (GREY, "-"),
    "Nesterov": (PURPLE, "-"),
    "Adam": (SKY, "-"),
    "Adam + wd": (BLUE, "-"),
    "L-BFGS": (GREEN, "-"),
    "Nesterov centred": (PURPLE, "--"),
    "Adam + wd centred": (BLUE, "--"),
    "L-BFGS centred": (GREEN, "--"),
    LITERAL: (ORANGE, "-"),
    MM: ("black", ":"),
    TUNED: (RED, ":"),
    RECOMMENDED: (RED, "-"),
}
"""What the curves show."""
PICTURES = ("SGD", "Adam", "Adam + wd", "Adam + wd centred", "L-BFGS centred", LITERAL, RECOMMENDED, TUNED)
"""What the pictures show."""


def shown(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The methods of these names in their order, with the settings that validation chose."""
    chosen = {row.choice.family: row for row in rows if VALIDATION in row.choice.criteria}
    return [chosen[name] for name in names if name in chosen]


@dataclass(frozen=True)
class Band:
    """Mean and extent over seeds of a number at each checkpoint."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]

    @classmethod
    def of(cls, traces: Sequence[Trace], x: Callable[[Point], float], y: Callable[[Point], float]) -> Band:
        together = list(zip(*(trace.points[1:] for trace in traces), strict=False))
        numbers = [[y(point) for point in points] for points in together]
        places = [statistics.fmean(map(x, points)) for points in together]
        return cls(places, [statistics.fmean(n) for n in numbers], [min(n) for n in numbers], [max(n) for n in numbers])


def curves(path: Path, rows: Sequence[Row], title: str) -> None:
    """Training error and held-out PSNR, against iterations and against seconds: mean and extent over seeds."""
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained", sharex="col", sharey="row")
    methods = shown(rows, tuple(LINES))
    for row in methods:
        for axis, x in zip(axes[0], (iteration, seconds), strict=True):
            line(axis, row, Band.of(row.traces, x, lambda point: point.train_mse))
        for axis, x in zip(axes[1], (iteration, seconds), strict=True):
            line(axis, row, Band.of(row.traces, x, lambda point: point.psnr))
    for axis in axes.flat:
        axis.set_xscale("log")
        axis.grid(color="#e8e8e8", linewidth=0.6)
        axis.set_axisbelow(True)
    ticks(axes[1, 0].xaxis, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000))
    ticks(axes[1, 1].xaxis, (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50))
    axes[0, 0].set_yscale("log")
    ticks(axes[0, 0].yaxis, (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.5))
    limits(axes[0, 0], [p.train_mse for row in methods for trace in row.traces for p in trace.points[1:]])
    limits(axes[1, 0], [p.psnr for row in methods for trace in row.traces for p in trace.points[1:]])
    axes[0, 0].set_ylabel("training MSE of the forward pass")
    axes[1, 0].set_ylabel("held-out PSNR, dB")
    axes[1, 0].set_xlabel("iterations over all training images")
    axes[1, 1].set_xlabel("CPU seconds of the iterations")
    handles = [
        Line2D([], [], color=c, linestyle=s, linewidth=1.8) for c, s in (LINES[r.choice.family] for r in methods)
    ]
    figure.legend(handles, [row.choice.family for row in methods], loc="outside right center", handlelength=2.6)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    save(figure, path)


def ticks(axis: Axis, places: Sequence[float]) -> None:
    """Numbers on a logarithmic axis as people write them."""
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def iteration(point: Point) -> float:
    return point.iteration


def seconds(point: Point) -> float:
    return point.seconds


def line(axis: Axes, row: Row, band: Band) -> None:
    colour, style = LINES[row.choice.family]
    front = 3 if row.choice.family == RECOMMENDED else 2
    axis.plot(band.x, band.mean, style, color=colour, linewidth=2.2 if front == 3 else 1.4, zorder=front)
    axis.fill_between(band.x, band.low, band.high, color=colour, alpha=0.15, linewidth=0)


def limits(axis: Axes, values: Sequence[float]) -> None:
    """From the lowest to the highest value but the outliers at one end: a method may start far from the others."""
    ordered = sorted(filter(math.isfinite, values))
    low, high = ordered[len(ordered) // 200], ordered[-1 - len(ordered) // 50]
    room = 1.05 if axis.get_yscale() == "log" else 0
    axis.set_ylim((low / room, high * room) if room else (low - 0.3, high + 0.3))


def pictures(
    path: Path, rows: Sequence[Row], samples: Samples, side: int, iterations: Sequence[int], title: str
) -> None:
    """Clean, noisy and denoised images of the first seed: a block for each number of iterations.

    Args:
        path: Where to.
        rows: The methods.
        samples: The images that the runs kept pictures of.
        side: Pixels of an edge.
        iterations: Of each block.
        title: Of the figure.
    """
    methods = shown(rows, PICTURES)
    plt.rcParams.update(STYLE)
    count = len(samples.noisy)
    heading = [("clean", samples.clean, ""), ("noisy", samples.noisy, "")]
    figure, axes = plt.subplots(
        len(heading) + len(methods), len(iterations),
        figsize=(1.3 + 0.52 * count * len(iterations), 0.3 + 0.58 * (len(heading) + len(methods))),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, number in enumerate(iterations):
        found = [(row.choice.family, row.traces[0].pictures[number], psnr_of(row, number)) for row in methods]
        for axis, (name, images, beside) in zip(axes[:, column], [*heading, *found], strict=True):
            strip(axis, images, side)
            if column == 0:
                axis.annotate(name, (-0.01, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=9)
            axis.annotate(beside, (1.01, 0.5), xycoords="axes fraction", va="center", fontsize=8)
        axes[0, column].set_title(f"after {number} iterations")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    save(figure, path)


def psnr_of(row: Row, number: int) -> str:
    return f"{row.traces[0].at(number).psnr:.1f} dB"


def strip(axis: Axes, images: Tensor, side: int) -> None:
    """Images side by side, black for 0 and white for 1."""
    wide = images.view(-1, side, side).permute(1, 0, 2).reshape(side, -1)
    axis.imshow(wide, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def save(figure: Any, path: Path) -> None:
    if path.exists():
        raise FileExistsError(path)
    figure.savefig(path, dpi=150)
    plt.close(figure)
