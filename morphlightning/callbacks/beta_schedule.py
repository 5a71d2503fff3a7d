"""Inverse temperatures that rise while a network trains, to infinity if asked for."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from morphlightning.errors import ConfigError
from morphlightning.interfaces import Hardenable


class BetaSchedule(Callback):
    r"""Raises the inverse temperature of all soft layers with the progress t of training.

    With :math:`t \in [0, 1)` the share of optimizer steps that have been taken, and s = min(1, t / until),

    .. math::

        \beta(t) = \text{start}^{1 - s}\, \text{end}^{s}

    (``"geometric"``), or :math:`(1 - s)\,\text{start} + s\,\text{end}` (``"linear"``), and :math:`\beta = \infty`, the
    hard network with the gradient of its winners, once :math:`t \ge` ``harden_at``. It is set before each batch in
    every module that is ``Hardenable``, and logged as ``beta`` (not where it is infinite). It depends on the global
    step alone, and layers save it with their weights: a resumed run goes on where it was, and the number of processes
    does not matter.

    Args:
        start: Inverse temperature of the first step, in 1 / units of the layers' values.
        end: That from ``until`` on.
        until: Share of the training after which it stays at ``end``.
        harden_at: Share of the training from which maxima are hard; 1 for never.
        scale: How it rises.

    Raises:
        ConfigError: Numbers out of range; a training without an end; a model without a soft layer.

    Source: the bound :math:`\max \le \frac1\beta\log\sum e^{\beta\,\cdot} \le \max + \log(n) / \beta`; derived here.
    """

    def __init__(
        self,
        start: float = 10.0,
        end: float = 80.0,
        until: float = 0.8,
        harden_at: float = 1.0,
        scale: Literal["geometric", "linear"] = "geometric",
    ) -> None:
        super().__init__()
        if not (0 < start < math.inf and 0 < end < math.inf):
            raise ConfigError(f"BetaSchedule: start and end must be finite numbers > 0, got {start} and {end}")
        if not (0 < until <= 1 and 0 < harden_at <= 1):
            raise ConfigError(f"BetaSchedule: until and harden_at must lie in (0, 1], got {until} and {harden_at}")
        if scale not in ("geometric", "linear"):
            raise ConfigError(f"BetaSchedule: scale must be 'geometric' or 'linear', got {scale!r}")
        self.start, self.end, self.until, self.harden_at, self.scale = start, end, until, harden_at, scale
        self._layers: list[Hardenable] = []

    def beta(self, progress: float) -> float:
        """The inverse temperature at a share of the training."""
        if self.harden_at < 1 and progress >= self.harden_at:
            return math.inf
        share = min(1.0, progress / self.until)
        if self.scale == "linear":
            return (1 - share) * self.start + share * self.end
        return float(self.start * (self.end / self.start) ** share)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for what there is to set."""
        self._layers = [module for module in pl_module.modules() if isinstance(module, Hardenable)]
        if not self._layers:
            raise ConfigError(
                f"BetaSchedule: {type(pl_module).__name__} has no soft layer; build it with SoftDilation, "
                "SoftSignedDilation, ... or leave the callback out"
            )
        progress(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the inverse temperature of this batch."""
        beta = self.beta(progress(trainer))
        for layer in self._layers:
            layer.set_beta(beta)
        if beta < math.inf:
            pl_module.log("beta", beta)


def progress(trainer: Trainer) -> float:
    """The share of a training's optimizer steps that have been taken, in [0, 1).

    Raises:
        ConfigError: The training has no end that is known.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < math.inf:
        raise ConfigError(
            "schedules over a training need its length: set the Trainer's max_epochs or max_steps (max_time alone does "
            "not say how many steps there will be)"
        )
    return trainer.global_step / steps
