"""torch's optimizers. Weight decay never touches max-plus weights, norms and biases.

Decay pulls a max-plus weight towards 0, where it wins, instead of towards -inf, where it would vanish.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from morphlightning.interfaces import Group
from morphlightning_plugins.optimizers.scheduled import Scheduled


@dataclass(frozen=True)
class _ByRole(Scheduled):
    """One parameter group for each role; ``morph_lr`` is the rate of max-plus weights where it differs."""

    morph_lr: float | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.morph_lr is not None and not self.morph_lr >= 0:
            raise ValueError(f"morph_lr must be >= 0, got {self.morph_lr}")

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


@dataclass(frozen=True)
class Sgd(_ByRole):
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
class Adam(_ByRole):
    """Adam; the default of our models.

    Source: Kingma and Ba, arXiv 1412.6980; torch.optim.Adam.
    """

    betas: tuple[float, float] = (0.9, 0.999)

    def make(self, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch.optim.Adam."""
        return torch.optim.Adam(params, betas=self.betas)


@dataclass(frozen=True)
class AdamW(_ByRole):
    """Adam with decoupled weight decay.

    Source: Loshchilov and Hutter, arXiv 1711.05101; torch.optim.AdamW.
    """

    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)

    def make(self, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch.optim.AdamW."""
        return torch.optim.AdamW(params, betas=self.betas)
