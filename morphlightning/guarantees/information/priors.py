"""Priors of max-plus weights, and boxes cut out of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from morphlightning.errors import ConfigError


@dataclass(frozen=True)
class TapPrior:
    r"""Independent weights: there with probability ``density``, and then uniform on [-bound, bound]; else missing.

    A posterior is the prior given that each weight lies in an interval [low, high]; an interval from -inf on takes in
    the missing weight. It costs

    .. math:: \mathrm{KL} = -\log P(\text{low} \le w \le \text{high})

    nats, so a tap that never wins and may be anywhere below some height costs next to nothing, and one that is known
    within rho about :math:`\log \tfrac{\text{bound}}{\rho} + \log \tfrac{1}{\text{density}}`.

    Args:
        bound: R > 0, in the units of the weights.
        density: In (0, 1].

    Raises:
        ConfigError: Numbers that cannot be.

    Source: derived in docs/guarantees.md.
    """

    bound: float
    density: float

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (0 < self.bound < math.inf and 0 < self.density <= 1):
            raise ConfigError(
                f"TapPrior: expected a finite bound > 0 and a density in (0, 1], got {self.bound} and {self.density}"
            )

    def nats(self, low: Tensor, high: Tensor) -> Tensor:
        """What each interval costs, in nats; inf where the prior has nothing in it."""
        there, missing = self._masses(low, high)
        return -(there + missing).log()

    def draw(self, low: Tensor, high: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Weights from the prior given that they lie in the intervals; -inf for those that are missing."""
        present, absent = self._masses(low, high)
        there = torch.rand(low.shape, generator=generator, dtype=low.dtype) * (present + absent) < present
        bottom, top = (end.clamp(-self.bound, self.bound) for end in (low, high))
        values = bottom + (top - bottom) * torch.rand(low.shape, generator=generator, dtype=low.dtype)
        return torch.where(there, values, -math.inf)

    def _masses(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """What the prior has in each interval: weights that are there, and missing ones."""
        bottom, top = (end.clamp(-self.bound, self.bound) for end in (low, high))
        there = self.density * ((top - bottom).clamp_min(0) / (2 * self.bound))
        return there, (1 - self.density) * (low == -math.inf).to(low.dtype)
