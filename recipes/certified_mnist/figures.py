"""Certified accuracy against radius, and worst cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from evaluation import Case, Examined
from matplotlib.figure import Figure
from training import Setting

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def radii(found: Sequence[Examined], setting: Setting, records: Mapping[float, float]) -> Figure:
    """Certified accuracy at every radius, of each network; attacks and published records as points."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    eps = torch.linspace(0, 1.5 * setting.eps, 301)
    for number, one in enumerate(found):
        share = 1 - torch.searchsorted(one.margins, 2 * eps, right=True) / one.count
        axes.plot(eps, 100 * share, color=BLUE, label=None if number else "certified (one forward pass)")
        for radius, attack in one.attacked.items():
            label = None if number or radius != setting.eps else "accuracy under attack"
            axes.plot([radius], [100 * attack.upper], "v", color=ORANGE, label=label)
        points = [(r, 100 * one.certified["int16", r].share) for r in one.radii]
        axes.plot(*zip(*points, strict=True), "x", color=GREEN, label=None if number else "certified, 16-bit integers")
    for radius, accuracy in records.items():
        axes.plot([radius], [100 * accuracy], "*", color="black", markersize=10)
        axes.annotate("published best", (radius, 100 * accuracy), (4, 5), textcoords="offset points", fontsize=8)
    axes.axvline(setting.eps, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="radius, of pixels in [0, 1]", ylabel="test images (%)", ylim=(0, 106), xlim=(0, float(eps[-1])))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def worst_cases(cases: Sequence[Case], setting: Setting) -> Figure:
    """Images, the images that an attack made of them, and the difference."""
    figure = Figure(figsize=(1.15 * len(cases) + 0.6, 4), layout="constrained")
    grid = figure.subplots(3, len(cases), squeeze=False)
    for column, case in zip(grid.T, cases, strict=True):
        shown = (case.image, case.changed, case.changed - case.image)
        titles = (f"{case.label}", f"taken for {case.taken_for}", "")
        for axes, image, title in zip(column, shown, titles, strict=True):
            change = image is shown[2]
            low, high = (-setting.eps, setting.eps) if change else (0, 1)
            axes.imshow(image[0], cmap="RdBu" if change else "gray", vmin=low, vmax=high)
            axes.set_title(title, fontsize=9)
            axes.set(xticks=[], yticks=[])
    for axes, name in zip(grid[:, 0], ("image", f"within {setting.eps:g}", "difference"), strict=True):
        axes.set_ylabel(name, fontsize=9)
    return figure
