"""torch's optimizers with torch's schedules. Weight decay never touches max-plus weights, norms and biases.

Decay pulls a max-plus weight towards 0, where it wins, instead of towards -inf, where it would vanish.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR, StepLR

from morphlightning.errors import ConfigError
from morphlightning.interfaces import Group, TorchOptimizer

Schedule = Literal["constant", "cosine", "one_cycle", "step"]
SCHEDULES: tuple[Schedule, ...] = ("constant", "cosine", "one_cycle", "step")


@dataclass(frozen=True)
class _Scheduled(TorchOptimizer):
    """What all have in common: a rate, a decay and a schedule.

    ``schedule``: constant, cosine (to 0), one_cycle (torch's OneCycleLR with ``lr`` as its peak; the
    momentum is left alone), or step (times 0.1 after each third). Rates change after every optimizer step.
    ``warmup`` is the share of all steps over which a constant or cosine rate rises linearly. ``morph_lr`` is the rate
    of max-plus weights where it differs.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup: float = 0.0
    morph_lr: float | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        if self.morph_lr is not None and not self.morph_lr >= 0:
            raise ValueError(f"morph_lr must be >= 0, got {self.morph_lr}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be >= 0, got {self.weight_decay}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), got {self.warmup}")
        if self.warmup and self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule {self.schedule!r} takes no warmup, got {self.warmup}")

    @abstractmethod
    def make(self, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The torch optimizer over parameter groups."""

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """One parameter group for each role, named after it."""
        return self.make(
            [
                {
                    "params": group.params,
                    "name": group.role,
                    "lr": self.lr if group.role != "morph" or self.morph_lr is None else self.morph_lr,
                    "weight_decay": self.weight_decay if group.decay else 0.0,
                }
                for group in groups
            ]
        )

    def scheduler(self, optimizer: torch.optim.Optimizer, total_steps: int, total_epochs: int) -> dict[str, Any] | None:
        """A schedule that is stepped after every optimizer step.

        Raises:
            ConfigError: The schedule depends on the length of the run, and the run has no end.
        """
        if self.schedule == "constant" and not self.warmup:
            return None
        if total_steps < 1:
            what = f"schedule {self.schedule!r}" + (f" with warmup={self.warmup}" if self.warmup else "")
            raise ConfigError(f"{what} depends on the length of the run: set the Trainer's max_epochs or max_steps")
        return {"scheduler": self._schedule(optimizer, total_steps), "interval": "step"}

    def _schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        if self.schedule == "one_cycle":
            highest = [group["lr"] for group in optimizer.param_groups]
            return OneCycleLR(optimizer, highest, total_steps=steps, cycle_momentum=False)
        if self.schedule == "step":
            return StepLR(optimizer, math.ceil(steps / 3), gamma=0.1)
        rising = int(self.warmup * steps)
        parts: list[LRScheduler] = []
        if rising:
            parts.append(LinearLR(optimizer, 1 / (rising + 1), 1.0, rising))
        if self.schedule == "cosine":
            parts.append(CosineAnnealingLR(optimizer, steps - rising))
        return SequentialLR(optimizer, parts, [rising]) if len(parts) == 2 else parts[0]


@dataclass(frozen=True)
class Sgd(_Scheduled):
    """Stochastic gradient descent with momentum.

    Source: torch.optim.SGD.
    """

    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False

    def make(self, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch.optim.SGD."""
        return torch.optim.SGD(params, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class Adam(_Scheduled):
    """Adam; the default of our models.

    Source: Kingma and Ba, arXiv 1412.6980; torch.optim.Adam.
    """

    betas: tuple[float, float] = (0.9, 0.999)

    def make(self, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch.optim.Adam."""
        return torch.optim.Adam(params, betas=self.betas)


@dataclass(frozen=True)
class AdamW(_Scheduled):
    """Adam with decoupled weight decay.

    Source: Loshchilov and Hutter, arXiv 1711.05101; torch.optim.AdamW.
    """

    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)

    def make(self, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch.optim.AdamW."""
        return torch.optim.AdamW(params, betas=self.betas)
