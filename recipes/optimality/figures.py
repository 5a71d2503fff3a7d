"""Objectives, bounds and polars against the number of slices; fits of functions of one variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8a8a8a"
History = Sequence[Mapping[str, float]]


def growth(found: Mapping[str, History]) -> Figure:
    """For each kind of network the objective with its bound above, the polar below."""
    figure = Figure(figsize=(3.1 * len(found), 4.8), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False, sharex="col")
    for column, (name, history) in enumerate(found.items()):
        slices = [one["slices"] for one in history]
        top, bottom = axes[0, column], axes[1, column]
        top.plot(slices, [one["objective"] for one in history], "o-", color=BLUE, markersize=3, label="objective F")
        if "gap_certified" in history[0]:
            bounds = [one["objective"] - one["gap_certified"] for one in history]
            top.plot(slices, bounds, "s--", color=ORANGE, markersize=3, label="certified: F* is above")
            upper = [one["polar_upper"] for one in history]
            bottom.plot(slices, upper, "s--", color=ORANGE, markersize=3, label="at most")
        else:
            guesses = [one["objective"] - one["gap_estimated"] for one in history]
            top.plot(slices, guesses, ":", color=GREY, label="estimate of F*, no bound")
        bottom.plot(slices, [one["polar_lower"] for one in history], "o-", color=BLUE, markersize=3, label="at least")
        bottom.axhline(1, color="black", linewidth=0.7)
        bottom.set_yscale("log")
        top.set_title(name, fontsize=10)
        bottom.set_xlabel("slices")
        for axis in (top, bottom):
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
    axes[0, 0].set_ylabel("objective")
    axes[1, 0].set_ylabel("polar; above 1: not optimal")
    return figure


def curves(x: Tensor, y: Tensor, grid: Tensor, fits: Mapping[str, Tensor], history: History) -> Figure:
    """Samples and fits; and how much above the optimum the growing network is at most, certified."""
    figure = Figure(figsize=(8.4, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(x, y, ".", color=GREY, label="samples")
    for (name, fit), colour in zip(fits.items(), (ORANGE, BLUE), strict=False):
        left.plot(grid, fit, color=colour, label=name, linewidth=1.4)
    left.set(xlabel="x", title="sums of max(s x + w, v)")
    slices = [one["slices"] for one in history]
    above = [100 * one["excess_certified"] for one in history]
    right.semilogy(slices, above, "o-", color=BLUE, label="above the optimum at most, %")
    polar = [100 * max(one["polar_lower"] - 1, 1e-8) for one in history]
    right.semilogy(slices, polar, "s--", color=ORANGE, label="polar above 1, %")
    right.set(xlabel="slices", title="distance to the global optimum")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure
