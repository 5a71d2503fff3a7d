"""How loss and metrics went, training against validation."""

from __future__ import annotations

import math
import re
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from morphlightning.callbacks.figures.base import DPI, MEDIUM, SMALL, FigureCallback, moment_of

STYLES = {  # stage: colour, line, marker
    "train": ("#0072B2", "-", "o"),
    "val": ("#D55E00", "--", "s"),
}
_NAME = re.compile(r"(train|val)[/_](.+)")


class LearningCurves(FigureCallback):
    """Draws what was logged over the epochs, one panel a metric, training against validation.

    Metrics are known by name: ``train/<metric>`` and ``val/<metric>`` (or ``train_<metric>``, ``val_<metric>``), logged
    with ``on_epoch=True``; what the module logs in its own ``on_train_epoch_end`` comes too late. The figure is drawn
    at the end of training. The curves are kept in checkpoints, so that a resumed run draws the whole course. See
    :class:`FigureCallback` for where the figure goes.

    Attributes:
        history: For each logged name, the points [epochs done, value].
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, list[list[float]]] = {}

    def state_dict(self) -> dict[str, Any]:
        """The curves, plain values."""
        return {"history": {name: [list(point) for point in points] for name, points in self.history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the curves of the checkpoint."""
        self.history = {name: [list(point) for point in points] for name, points in state_dict["history"].items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the curves of another fit."""
        if trainer.global_step == 0:
            self.history = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take down the metrics of training."""
        self._take_down(trainer, "train", trainer.current_epoch + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take down the metrics of validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            batches = trainer.num_training_batches
            share = (trainer.fit_loop.batch_idx + 1) / batches if math.isfinite(batches) else 1
            self._take_down(trainer, "val", trainer.current_epoch + share)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        if not trainer.is_global_zero:
            return
        panels = by_metric(self.history)
        if panels:
            self.publish(trainer, "learning_curves", draw_curves(panels), moment_of(trainer, training_ended=True))
            return
        logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
        rank_zero_warn(
            "LearningCurves: no curve to draw; self.log names of the form train/<metric> and val/<metric> with "
            f"on_epoch=True. Logged was: {logged}."
        )

    def _take_down(self, trainer: Trainer, stage: str, epochs: float) -> None:
        for name, value in trainer.callback_metrics.items():  # a collective, perhaps: on every process
            match = _NAME.fullmatch(name)
            if match and match[1] == stage and not name.endswith("_step"):
                points = self.history.setdefault(name, [])
                points[:] = [point for point in points if point[0] < epochs]  # what a resumed run does again
                points.append([float(epochs), float(value)])


def by_metric(history: dict[str, list[list[float]]]) -> dict[str, dict[str, list[list[float]]]]:
    """Curves by metric and stage, the loss first."""
    panels: dict[str, dict[str, list[list[float]]]] = {}
    for name, points in history.items():
        match = _NAME.fullmatch(name)
        if match:
            panels.setdefault(match[2].removesuffix("_epoch"), {})[match[1]] = points
    return dict(sorted(panels.items(), key=lambda panel: (panel[0] != "loss", panel[0])))


def draw_curves(panels: dict[str, dict[str, list[list[float]]]]) -> Figure:
    """Figure of curves by metric and stage, each a list of points [epochs, value]."""
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 2.8 * rows + 0.5), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (metric, curves) in zip(axes.flat, panels.items(), strict=False):
        for stage, (color, line, marker) in STYLES.items():
            if stage in curves:
                epochs, values = zip(*curves[stage], strict=True)
                mark = marker if len(values) <= 30 else ""
                label = f"{stage}, last {values[-1]:.4g}"
                axis.plot(epochs, values, color=color, linestyle=line, marker=mark, markersize=3.5, label=label)
        axis.set_title(metric.replace("_", " "), fontsize=MEDIUM)
        axis.set_xlabel("epochs", fontsize=SMALL)
        axis.tick_params(labelsize=SMALL)
        axis.set_xlim(0, 1.04 * max(point[0] for points in curves.values() for point in points))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(color="0.9", linewidth=0.8)
        axis.legend(fontsize=SMALL, frameon=False)
    figure.suptitle("Learning curves", fontsize=MEDIUM + 1)
    return figure
