"""How far an optimizer's step goes, measured by the radius up to which the first-order model holds."""

from __future__ import annotations

from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import CatMetric

from morphlightning.bouligand import OperatorCall, exact_radius, operator_calls
from morphlightning.errors import NotSupportedError
from morphlightning.ops.dispatch import maxplus
from morphlightning.ops.geometry import Geometry
from morphlightning.pipeline import policy_of
from morphlightning_plugins.diagnostics.base import StepDiagnostic
from morphlightning_plugins.diagnostics.replay import Replay

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5}
LONG = 1e6  # what stands in a curve for radii beyond it; rows that never bend have inf


class RadiusMonitor(StepDiagnostic):
    r"""Exact radii of the rows of each max-plus layer against the step that the optimizer took.

    The step carries the scores of a row from :math:`s_j` to :math:`s_j + d_j`, inputs and weights together. On the
    straight line between them the row stays in its linear cell up to

    .. math:: \rho = \min \{(y - s_j) / (d_j - y') : j \notin J,\ d_j > y'\}, \qquad y' = \max_{j \in J} d_j

    times the step: with :math:`\rho \ge 1` the step kept to the cell in which its gradient was taken, with
    :math:`\rho < 1` another candidate has overtaken. The scores are those before and after the step, so that holds of
    every network, with curved functions and with cells crossed in other layers too. Over all rows of all samples and
    processes it logs

    - ``diagnostics/radius_monitor/<layer>/q05``, ``.../q25``, ``.../q50``: quantiles of rho, at most 1e6;
    - ``.../<layer>/crossed``: share of rows with rho < 1.

    Cost at each measured step: a copy of the parameters, two forward passes and two passes over the operators.

    Args:
        every_n_steps: Measure at each such number of optimizer steps.
        prog_bar: Show ``crossed`` in the progress bar too.

    Raises:
        ConfigError: every_n_steps is below 1.

    Source: the ratio test of :func:`morphlightning.bouligand.exact_radius`.
    """

    name: ClassVar[str] = "radius_monitor"

    def after_step(self, trainer: Trainer, module: LightningModule, replay: Replay, before: dict[str, Tensor]) -> None:
        """Compare the scores before and after."""
        starts = replay.run(lambda module: operator_calls(module, replay.input), before)
        ends = replay.run(lambda module: operator_calls(module, replay.input))
        if not starts:
            raise NotSupportedError(f"{type(module).__name__} calls no max-plus operator")
        radii: dict[str, list[Tensor]] = {}
        for start, end in zip(starts, ends, strict=True):
            radii.setdefault(start.name or "network", []).append(radius_between(start, end).flatten())
        for layer, found in radii.items():
            here = torch.cat(found)
            rows = CatMetric(nan_strategy="ignore").to(here.device).set_dtype(here.dtype)
            rows.update(here)
            radius = rows.compute()  # of all processes, each with a number of rows of its own
            for key, q in QUANTILES.items():
                quantile = radius.kthvalue(max(1, round(q * len(radius)))).values
                self.record(module, f"{layer}/{key}", quantile.clamp_max(LONG))
            self.record(module, f"{layer}/crossed", (radius < 1).double().mean(), telling=True)


def radius_between(start: OperatorCall, end: OperatorCall) -> Tensor:
    """The radius of each row of a call on the straight line from its scores to those of another call."""
    at, to = (start.x, start.w), (end.x, end.w)
    directions = tuple(torch.where(a.isfinite() & b.isfinite(), b - a, 0.0) for a, b in zip(at, to, strict=True))
    return exact_radius(_Operator(start.where), at, directions).rows[""]


class _Operator(nn.Module):
    """One max-plus operator as a module of two inputs."""

    def __init__(self, where: Geometry) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return maxplus(x, w, self.where, policy_of("first"))
