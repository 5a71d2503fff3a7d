"""Figures in one style; the colours can be told apart by colour-blind readers (Okabe and Ito)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = {"morphological": "#0072B2", "ReLU MLP": "#D55E00", "CNN": "#009E73"}
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
TITLES = {"D": "D, of deformations", "G": "G, of noise of the same size", "R": "R = D / G"}


def curves(gradients: Sequence[float], found: Mapping[str, Sequence[Mapping[str, Tensor]]]) -> Figure:
    """D, G and R against kappa: means over seeds, and the range of seeds."""
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.9), layout="constrained")
    for axis, (key, title) in zip(axes, TITLES.items(), strict=True):
        for name, seeds in found.items():
            values = torch.stack([curve[key] for curve in seeds])
            axis.plot(gradients, values.mean(0), "o-", color=COLOURS[name], label=name, linewidth=1.4, markersize=3)
            axis.fill_between(gradients, values.amin(0), values.amax(0), color=COLOURS[name], alpha=0.2, linewidth=0)
        axis.set_title(title)
        axis.set_xlabel("κ = sup |∇τ|")
        axis.set_ylim(bottom=0)
        axis.grid(color="#e6e6e6", linewidth=0.6)
    axes[0].legend()
    return figure


def digits(shown: Mapping[str, Tensor]) -> Figure:
    """Rows of images, each with its name."""
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    figure, axes = plt.subplots(len(shown), figsize=(5.4, 0.68 * len(shown)), layout="constrained", squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], shown.items(), strict=True):
        axis.imshow(torch.cat(list(images[:, 0]), 1), cmap="gray_r", vmin=0, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure
