"""How many knots of learned splines are active, how steep they are, and whether they obey."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from morphlightning.interfaces import Spline
from morphlightning.splines import SlopeConstraint
from morphlightning.splines.tv2 import active_knots, tv2
from morphlightning_plugins.diagnostics.base import PeriodicDiagnostic


class SplineMonitor(PeriodicDiagnostic):
    r"""Kinks and slopes of the learned splines of every module with the capability ``Spline``.

    Of the splines as they are applied after the step it logs

    - ``diagnostics/spline_monitor/<module>/active_knots``: inner knots whose change of slope is more than 1 % of their
      spline's second-order total variation, mean over splines;
    - ``.../<module>/tv2``: the second-order total variation, mean over splines;
    - ``.../<module>/steepest``: the largest \|slope\|, in float64;
    - ``.../<module>/excess``: by how much a slope is outside the module's constraint at most, in float64, where the
      module has one (an attribute ``constraint``).

    Cost at each measured step: one projection of the values. All processes hold the same splines and log the same.

    Args:
        every_n_steps: Measure at each such number of optimizer steps.
        prog_bar: Show ``active_knots`` in the progress bar too.

    Raises:
        ConfigError: every_n_steps is below 1.
    """

    name: ClassVar[str] = "spline_monitor"

    def __init__(self, every_n_steps: int = 50, prog_bar: bool = False) -> None:
        super().__init__(every_n_steps, prog_bar)
        self._measured = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where there is nothing to measure."""
        self._measured = trainer.global_step
        if not any(isinstance(child, Spline) for child in pl_module.modules()):
            rank_zero_warn(f"spline_monitor: {type(pl_module).__name__} holds no learnable splines; nothing is logged")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure where a step that was due has been taken."""
        step = trainer.global_step
        if step == self._measured or step % self.every_n_steps:
            return
        self._measured = step
        for name, child in pl_module.named_modules():
            if isinstance(child, Spline):
                self._measure(pl_module, name or "network", child)

    @torch.no_grad()
    def _measure(self, pl_module: LightningModule, name: str, child: Spline) -> None:
        table = child.table()
        knots, values = table.knots.double(), table.values.double()
        slopes = values.diff(dim=1) / knots.diff(dim=1)
        active = active_knots(values, knots).sum(1).double().mean()
        self.record(pl_module, f"{name}/active_knots", active, telling=True)
        self.record(pl_module, f"{name}/tv2", tv2(values, knots).mean())
        self.record(pl_module, f"{name}/steepest", slopes.abs().max())
        constraint = getattr(child, "constraint", None)
        if isinstance(constraint, SlopeConstraint):
            bounds = replace(constraint, odd=False)  # of slopes alone
            self.record(pl_module, f"{name}/excess", values.new_tensor(bounds.excess(values, knots)))
