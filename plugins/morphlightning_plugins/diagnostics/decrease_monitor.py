"""Whether a step brought the decrease of the loss that its direction promised."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from morphlightning.bouligand import loss_slope
from morphlightning.errors import ConfigError
from morphlightning_plugins.diagnostics.base import StepDiagnostic
from morphlightning_plugins.diagnostics.replay import Replay


class DecreaseMonitor(StepDiagnostic):
    r"""Predicted and actual decrease of the data loss by the step that the optimizer took, on the batch of the step.

    With parameters p before the step and p + s after it, :math:`L(p)` the mean of ``data_loss(module(x), y)`` over
    processes, and the one-sided derivative of :func:`morphlightning.bouligand.loss_slope` it logs

    - ``diagnostics/decrease_monitor/predicted``: :math:`-L'(p; s)`, below 0 where s is no direction of descent;
    - ``diagnostics/decrease_monitor/actual``: :math:`L(p) - L(p + s)`;
    - ``diagnostics/decrease_monitor/ratio``: actual over predicted; none where the latter is 0.

    A ratio near 1 says that the first-order model holds over the step; a small or negative one, that the step is too
    long or crosses too many cells. A plain gradient cannot see that of several tied candidates all have to fall; this
    derivative does. Regularizers are left out.

    Cost at each measured step: a copy of the parameters, and about four forward passes.

    Args:
        every_n_steps: Measure at each such number of optimizer steps.
        prog_bar: Show ``ratio`` in the progress bar too.

    Raises:
        ConfigError: every_n_steps is below 1; or, at the start of the fit, the module has no ``data_loss``.

    Source: the Bouligand derivative as a first-order model is the idea of Blusseau, arXiv 2403.12975.
    """

    name: ClassVar[str] = "decrease_monitor"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module that does not say what its loss is."""
        super().on_fit_start(trainer, pl_module)
        if not callable(getattr(pl_module, "data_loss", None)):
            raise ConfigError(
                f"decrease_monitor: {type(pl_module).__name__} has no data_loss(output, target), so its loss cannot "
                "be evaluated after a step; use a model of morphlightning.models, add that method, or leave the "
                "diagnostic out"
            )

    def after_step(self, trainer: Trainer, module: LightningModule, replay: Replay, before: dict[str, Tensor]) -> None:
        """Compare the losses before and after, and with the slope."""
        now = dict(module.named_parameters())
        step = {name: now[name].detach() - old for name, old in before.items()}

        def loss(module: Any) -> Tensor:
            value: Tensor = module.data_loss(module(replay.input), replay.target)
            return value

        def slope(module: Any) -> Tensor:
            return loss_slope(module, module.data_loss, replay.input, replay.target, params=step)

        found = torch.stack([-replay.run(slope, before), replay.run(loss, before) - replay.run(loss)])
        predicted, actual = trainer.strategy.reduce(found, reduce_op="mean")
        self.record(module, "predicted", predicted)
        self.record(module, "actual", actual)
        if predicted != 0:
            self.record(module, "ratio", actual / predicted, telling=True)
