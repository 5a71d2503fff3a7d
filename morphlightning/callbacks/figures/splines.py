"""Learned splines, as they were and as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor, nn

from morphlightning.callbacks.figures.base import MEDIUM, SMALL, TrainingFigures, caption_of, grid
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Spline
from morphlightning.splines.tv2 import active_knots, tv2

Points = tuple[Tensor, Tensor]
"""Knots and values, (splines, K)."""
_COLUMNS = 8
_START, _NOW, _KINK = "0.6", "#0072B2", "#D55E00"


class SplineFigures(TrainingFigures):
    """Draws the learned activations of every module with the capability ``Spline``, one figure a module.

    Each panel is one spline: as it is, as it was before the first step, and its active knots, those whose kink is more
    than 1 % of the spline's second-order total variation. Drawn before the first step, after every ``every_n_epochs``
    epochs, and at the end of training. The start is kept in checkpoints, so that a resumed run shows it, too. A model
    without splines gets a warning and no figure. See :class:`FigureCallback` for where the figures go.

    Args:
        every_n_epochs: Draw after each such number of epochs.
        max_splines: Draw at most so many splines of a module, evenly chosen.

    Attributes:
        start: Knots and values of each module before the first step.

    Raises:
        ConfigError: An argument is below 1.
    """

    def __init__(self, every_n_epochs: int = 5, max_splines: int = 32) -> None:
        super().__init__(every_n_epochs)
        if max_splines < 1:
            raise ConfigError(f"SplineFigures: max_splines must be 1 or more, got {max_splines}")
        self.max_splines = max_splines
        self.start: dict[str, Points] = {}

    def state_dict(self) -> dict[str, Any]:
        """The splines before the first step."""
        return {"start": dict(self.start)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the start of the checkpoint's run."""
        self.start = dict(state_dict["start"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As the base; keep the splines to start from, and warn of a model without any."""
        found = dict(splines_of(pl_module))
        if not found:
            rank_zero_warn(
                f"SplineFigures: {type(pl_module).__name__} holds no learnable splines, so there is nothing to draw."
            )
        if trainer.global_step == 0:
            self.start = found
        super().on_train_start(trainer, pl_module)

    def draw(self, trainer: Trainer, pl_module: LightningModule, moment: str) -> None:
        """Publish a figure of each module with splines."""
        for name, now in splines_of(pl_module):
            figure = draw_splines(name, now, self.start.get(name), self.max_splines, caption_of(moment))
            self.publish(trainer, f"splines/{name}", figure, moment)


def splines_of(module: nn.Module) -> Iterator[tuple[str, Points]]:
    """Names of the modules with splines, and knots and values of these as they are applied, on the processor."""
    for name, child in module.named_modules():
        if isinstance(child, Spline):
            with torch.no_grad():
                table = child.table()
            knots, values = (part.detach().float().cpu().clone() for part in (table.knots, table.values))
            yield name or type(child).__name__, (knots, values)


def draw_splines(name: str, now: Points, start: Points | None = None, max_splines: int = 32, when: str = "") -> Figure:
    """Figure of a module's splines, all on the same axes.

    Args:
        name: The module's name, for the title.
        now: Knots and values.
        start: Knots and values before training.
        max_splines: How many to draw at most.
        when: The moment, for the title.
    """
    count = len(now[0])
    shown = torch.linspace(0, count - 1, min(count, max_splines)).round().long().tolist()
    rows, columns = math.ceil(len(shown) / _COLUMNS), min(len(shown), _COLUMNS)
    width = max(1.3, 4.2 / columns)  # what the title needs
    figure, axes = grid(
        rows, columns, (width, min(width, 2.8)), (0.12, 0.3), (0.5, 0.15, 0.35, 0.8), sharex=True, sharey=True
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    active = active_knots(now[1], now[0])
    for axis, spline in zip(axes.flat, shown, strict=False):
        axis.axhline(0, color="0.9", linewidth=0.8)
        axis.axvline(0, color="0.9", linewidth=0.8)
        if start is not None and start[0].shape[0] == count:
            axis.plot(*_extended(start, spline), color=_START, linewidth=1, linestyle="--")
        axis.plot(*_extended(now, spline), color=_NOW, linewidth=1.4)
        inner = (part[spline, 1:-1][active[spline]].numpy() for part in now)
        axis.plot(*inner, color=_KINK, linestyle="", marker="o", markersize=2.5)
        if count > 1:
            axis.set_title(str(spline), fontsize=SMALL, pad=2)
        axis.tick_params(labelsize=SMALL)
    of = f"{len(shown)} of {count} splines" if len(shown) < count else f"{count} spline{'s' if count > 1 else ''}"
    slopes = now[1].diff(dim=1) / now[0].diff(dim=1)
    facts = (
        f"mean TV2 {tv2(now[1], now[0]).mean():.3g}, active knots {active.sum(1).float().mean():.3g} of "
        f"{now[0].shape[1] - 2}, slopes {slopes.min():.3g} to {slopes.max():.3g}"
    )
    key = "dots: active knots" if start is None else "dashed: before training, dots: active knots"
    headline = ", ".join(filter(None, (name, of, when)))
    size = MEDIUM if columns > 3 else SMALL
    figure.suptitle(f"{headline}\n{facts}\n{key}", fontsize=size, y=1 - 0.08 / figure.get_figheight())
    return figure


def _extended(points: Points, spline: int) -> tuple[Any, Any]:
    """The polygon of a spline, a tenth longer at both ends."""
    t, c = (part[spline] for part in points)
    more = 0.1 * (t[-1] - t[0])
    first, last = (c[1] - c[0]) / (t[1] - t[0]), (c[-1] - c[-2]) / (t[-1] - t[-2])
    x = torch.cat([t[:1] - more, t, t[-1:] + more])
    return x.numpy(), torch.cat([c[:1] - more * first, c, c[-1:] + more * last]).numpy()
