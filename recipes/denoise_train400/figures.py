"""Pictures of a test image, learned profiles and filters, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from evaluation import Picture, psnr
from torch import Tensor

from morphlightning.models import RidgeRegularizerDenoiser

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

COLOURS = {
    "crr": "#E69F00",
    "crr_stack": "#CC79A7",
    "wcrr": "#D55E00",
    "wcrr_stack": "#009E73",
    "relu": "#56B4E9",
    "dncnn": "#0072B2",
}
"""Can be told apart by colour-blind readers (Okabe and Ito)."""
WINDOW = (slice(60, 180), slice(60, 180))
"""What is shown of the picture."""
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "legend.frameon": False}


def pictures(path: Path, found: Mapping[str, Picture]) -> None:
    """A window of one test image: noisy, as each method sees it, and clean, with the PSNR of the whole image."""
    first = next(iter(found.values()))
    images = {"noisy": first.noisy, **{name: picture.output for name, picture in found.items()}, "clean": first.clean}
    figure, axes = plt.subplots(1, len(images), figsize=(1.9 * len(images), 2.2), layout="constrained")
    for axis, (name, image) in zip(axes, images.items(), strict=True):
        axis.imshow(image[0, 0][WINDOW].clamp(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        value = "" if name == "clean" else f"\n{psnr(image.clamp(0, 1), first.clean):.2f} dB"
        axis.set_title(name + value, fontsize=8)
        axis.axis("off")
    _save(figure, path)


def learned(path: Path, models: Mapping[str, RidgeRegularizerDenoiser]) -> None:
    """Of each network its profile, the potential of that, and its filters, the strongest first."""
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    figure = plt.figure(figsize=(9, 2.9 * len(models)), layout="constrained")
    grid = figure.add_gridspec(len(models), 3, width_ratios=(1, 1, 1.4))
    for row, (name, model) in enumerate(models.items()):
        table = model.regularizer.activation.table()  # type: ignore[operator]
        reach = min(0.12, float(table.knots.detach().abs().max()))
        x = torch.linspace(-reach, reach, 1001)
        for column, (what, y) in enumerate((("profile", _of(table, x)), ("potential", _of(table, x, potential=True)))):
            axis = figure.add_subplot(grid[row, column])
            axis.plot(x, y.T, color=COLOURS.get(name, "black"), linewidth=1.2)
            axis.set_title(f"{name}: {what}", fontsize=9, loc="left")
        axis = figure.add_subplot(grid[row, 2])
        axis.imshow(mosaic(model), cmap="gray", interpolation="nearest")
        axis.set_title(f"{name}: filters", fontsize=9, loc="left")
        axis.axis("off")
    _save(figure, path)


@torch.no_grad()
def _of(table: object, x: Tensor, potential: bool = False) -> Tensor:
    rows = x.expand(len(table), -1)  # type: ignore[arg-type]
    how = table.potential if potential else table  # type: ignore[attr-defined]
    result: Tensor = how(rows, channel_dim=0)
    return result


@torch.no_grad()
def mosaic(model: RidgeRegularizerDenoiser, columns: int = 12) -> Tensor:
    """Filters side by side, each scaled to [-1, 1], the strongest first."""
    weight = model.regularizer.filters().kernels[-1]
    kernels = weight if weight.shape[1] == 1 else _composed(model)
    kernels = kernels[:, 0][kernels.flatten(1).norm(dim=1).argsort(descending=True)]
    kernels = kernels / kernels.abs().amax((1, 2), keepdim=True)
    kernels = torch.nn.functional.pad(kernels, (0, 1, 0, 1), value=1.0)
    missing = -len(kernels) % columns
    kernels = torch.cat([kernels, kernels.new_ones(missing, *kernels.shape[1:])])
    rows = len(kernels) // columns
    return kernels.view(rows, columns, *kernels.shape[1:]).transpose(1, 2).flatten(2).flatten(0, 1)


def _composed(model: RidgeRegularizerDenoiser) -> Tensor:
    """Responses to one white pixel, turned into kernels."""
    filters = model.regularizer.filters()
    side = 2 * filters.extent - 1
    point = torch.zeros(1, 1, side, side)
    point[..., side // 2, side // 2] = 1
    return filters(point).flip(2, 3).transpose(0, 1)


def curves(path: Path, found: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """PSNR on the validation images against processor time."""
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    figure, axis = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for name, points in found.items():
        colour = COLOURS.get(name, "black")
        axis.plot([p["seconds"] for p in points], [p["psnr"] for p in points], "o-", ms=3, color=colour, label=name)
    axis.set_xscale("log")
    axis.set_xlabel("processor time of training, s")
    axis.set_ylabel("PSNR at sigma 25, validation images, dB")
    axis.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
