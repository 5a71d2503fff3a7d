"""How many candidates of each maximum are tied, exactly or nearly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from morphlightning.backends import backend_for
from morphlightning.bouligand import OperatorCall, operator_calls
from morphlightning.errors import ConfigError, NotSupportedError
from morphlightning_plugins.diagnostics.base import ReplayDiagnostic
from morphlightning_plugins.diagnostics.replay import Replay


class TieMonitor(ReplayDiagnostic):
    r"""Sizes of the active sets of each max-plus layer, on the batch of the step.

    A row is one maximum (of an erosion: minimum) over its candidates, with the active sets

    .. math:: J = \{j : s_j = \max_k s_k\}, \qquad J^\varepsilon = \{j : s_j \ge \max_k s_k - \varepsilon\}.

    Over all rows of all calls of the layer it logs

    - ``diagnostics/tie_monitor/<layer>/active``: mean |J|, 1 where nothing is tied;
    - ``.../<layer>/near_active``: mean |J^eps|;
    - ``.../<layer>/tied``: share of rows with |J| > 1, whose derivative is not linear;
    - ``.../<layer>/near_tied``: share of rows with |J^eps| > 1.

    Cost at each measured step: one forward pass and three passes over the operators. Values are means over processes.

    Args:
        eps: How far below the maximum a candidate counts as nearly tied.
        every_n_steps: Measure at each such number of optimizer steps.
        prog_bar: Show ``near_active`` in the progress bar too.

    Raises:
        ConfigError: eps or every_n_steps is out of range.

    Source: the Bouligand derivative of a maximum is that of its active set (Blusseau, arXiv 2403.12975).
    """

    name: ClassVar[str] = "tie_monitor"

    def __init__(self, eps: float = 0.02, every_n_steps: int = 50, prog_bar: bool = False) -> None:
        super().__init__(every_n_steps, prog_bar)
        if not 0 <= eps < float("inf"):
            raise ConfigError(f"tie_monitor: eps must be finite and >= 0, got {eps}")
        self.eps = eps

    def before_step(self, trainer: Trainer, module: LightningModule, replay: Replay) -> None:
        """Count on the step's batch."""
        sizes: dict[str, list[Tensor]] = {}
        for call in replay.run(lambda module: operator_calls(module, replay.input)):
            sizes.setdefault(call.name or "network", []).append(active_sizes(call, (0.0, self.eps)))
        if not sizes:
            raise NotSupportedError(f"{type(module).__name__} calls no max-plus operator")
        for layer, found in sizes.items():
            exact, near = torch.cat(found, 1)
            self.record(module, f"{layer}/active", exact.double().mean(), sync_dist=True)
            self.record(module, f"{layer}/near_active", near.double().mean(), telling=True, sync_dist=True)
            self.record(module, f"{layer}/tied", (exact > 1).double().mean(), sync_dist=True)
            self.record(module, f"{layer}/near_tied", (near > 1).double().mean(), sync_dist=True)


def active_sizes(call: OperatorCall, each_eps: Sequence[float]) -> Tensor:
    """Number of candidates within each eps of the maximum of each row, (eps, rows), int32."""
    _, x, w, where = call
    x, where = -x if where.dual else x, replace(where, dual=False)
    backend = backend_for(x)
    _, arg, gap = backend.indices(x, w, where, True)
    return torch.stack([backend.active(x, w, arg, gap, where, eps).size.flatten() for eps in each_eps])
