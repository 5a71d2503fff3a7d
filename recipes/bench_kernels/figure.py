"""One figure for a group: how many times the time of the reference each operator takes, for each case and mode."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
from cases import MODES, Row
from matplotlib.patches import Patch
from tables import short, sorted_by_case

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"ours": "#1f6fb4", "peer": "#8c8c8c", "other": "#e08a1e"}
LEGEND = {"ours": "morphlightning", "peer": "same result", "other": "another operator of this shape"}
BAR, HEAD = 0.21, 0.75
"""Inches of a bar, and of what stands around a panel."""


def draw(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Bars to the left of 1 are faster than the reference, to the right slower; the axis is logarithmic."""
    modes = [mode for mode in MODES if any(row.mode == mode for row in rows)]
    panels = [list(group) for _, group in groupby(sorted_by_case(rows), key=lambda row: row.case)]
    bars = [max(sum(row.mode == mode for row in panel) for mode in modes) for panel in panels]
    heights = [BAR * count + HEAD for count in bars]
    figure, axes = plt.subplots(
        len(panels),
        len(modes),
        figsize=(9.5 * len(modes), sum(heights) + 0.8),
        height_ratios=heights,
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    figure.suptitle(title, fontsize=12)
    for line, panel in zip(axes, panels, strict=True):
        for axis, mode in zip(line, modes, strict=True):
            shown = [row for row in panel if row.mode == mode]
            if shown:
                _panel(axis, f"{panel[0].case}: {MODES[mode]}", shown)
            else:
                axis.set_axis_off()
    ratios = [0.5, 2.0, *(row.times_reference for row in rows)]
    room = (max(ratios) / min(ratios)) ** 0.25  # for the figures beside the bars
    axes[0, 0].set_xlim(min(ratios) / room, max(ratios) * room)
    handles = [Patch(color=COLOURS[role]) for role in LEGEND]
    figure.legend(handles, LEGEND.values(), loc="outside lower center", ncols=len(LEGEND), frameon=False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _panel(axis: Any, title: str, rows: Sequence[Row]) -> None:
    ordered = sorted(rows, key=lambda row: row.times_reference, reverse=True)
    ratios = [row.times_reference for row in ordered]
    axis.barh(
        range(len(ordered)),
        [ratio - 1 for ratio in ratios],
        left=1,
        height=0.72,
        color=[COLOURS[row.role] for row in ordered],
    )
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(ordered)), [row.operator for row in ordered], fontsize=8)
    axis.set_ylim(-0.6, len(ordered) - 0.4)
    for k, row in enumerate(ordered):
        faster = row.times_reference < 1
        axis.annotate(
            f"{short(row.times_reference)}  ({short(row.milliseconds)} ms)",
            (row.times_reference, k),
            (-4 if faster else 4, 0),
            textcoords="offset points",
            ha="right" if faster else "left",
            va="center",
            fontsize=8,
        )
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel(f"times {rows[0].reference}", fontsize=8)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.tick_params(axis="x", labelsize=8, labelbottom=True)
    axis.spines[["top", "right"]].set_visible(False)
