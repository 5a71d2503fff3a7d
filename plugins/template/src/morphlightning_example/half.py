"""A derivative rule between winner-takes-all and equal shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from morphlightning.interfaces import ActiveChunk, DerivativeRule


@dataclass(frozen=True)
class Half(DerivativeRule):
    """The winner keeps a part of the message, all tied candidates share the rest.

    With J tied candidates the winner receives (keep + (1 - keep) / J) u, each other one (1 - keep) / J u.

    Attributes:
        keep: The winner's part, in [0, 1]; 1 is the rule ``first``, 0 is the rule ``uniform``.
        eps: Candidates whose score lies within eps of the maximum count as tied.
    """

    api_version: ClassVar[str] = "1.0"
    keep: float = 0.5
    eps: float = 0.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 <= self.keep <= 1:
            raise ValueError(f"keep must lie in [0, 1], got {self.keep}")
        if not self.eps >= 0:
            raise ValueError(f"eps must be >= 0, got {self.eps}")

    def route(self, chunk: ActiveChunk, u: Tensor) -> tuple[Tensor, Tensor]:
        """The same share for the cell and for the weight."""
        message, tied = u[chunk.owner], chunk.size[chunk.owner]
        share = torch.where(chunk.winner, self.keep * message, 0.0) + (1 - self.keep) * message / tied
        # a lone candidate gets exactly the message, which rounding in the sum above would spoil
        share = torch.where(tied == 1, message, share)
        return share, share
