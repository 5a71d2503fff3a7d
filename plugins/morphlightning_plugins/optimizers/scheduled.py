"""Learning rates over a training: torch's schedules by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR, StepLR

from morphlightning.errors import ConfigError
from morphlightning.interfaces import TorchOptimizer

Schedule = Literal["constant", "cosine", "one_cycle", "step"]
SCHEDULES: tuple[Schedule, ...] = ("constant", "cosine", "one_cycle", "step")


@dataclass(frozen=True)
class Scheduled(TorchOptimizer):
    """What all optimizers have in common: a rate, a decay and a schedule.

    ``schedule``: constant, cosine (to 0), one_cycle (torch's OneCycleLR with ``lr`` as its peak; the
    momentum is left alone), or step (times 0.1 after each third). Rates change after every optimizer step.
    ``warmup`` is the share of all steps over which a constant or cosine rate rises linearly.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be >= 0, got {self.weight_decay}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), got {self.warmup}")
        if self.warmup and self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule {self.schedule!r} takes no warmup, got {self.warmup}")

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
