"""Rules that treat all messages alike, whatever their sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from morphlightning.interfaces import ActiveChunk, DerivativeRule


def check_eps(eps: float) -> None:
    """Raise ValueError unless eps is a non-negative number."""
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}; it is the slack within which a candidate counts as tied")


@dataclass(frozen=True)
class First(DerivativeRule):
    """The winner alone receives the message: the gradient of max with ties to the lowest input position.

    Source: the convention of torch.max and of max-pooling.
    """

    support: ClassVar[Literal["first", "active"]] = "first"

    def route(self, chunk: ActiveChunk, u: Tensor) -> tuple[Tensor, Tensor]:
        """Send u to the winner, 0 to the others."""
        share = torch.where(chunk.winner, u[chunk.owner], 0.0)
        return share, share


@dataclass(frozen=True)
class Uniform(DerivativeRule):
    """All candidates within eps of the maximum share the message equally: u / |J| each.

    Source: the convention of torch.amax (eps = 0).
    """

    eps: float = 0.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_eps(self.eps)

    def route(self, chunk: ActiveChunk, u: Tensor) -> tuple[Tensor, Tensor]:
        """Send u / |J| to each candidate."""
        share = (u / chunk.size)[chunk.owner]
        return share, share


@dataclass(frozen=True)
class All(DerivativeRule):
    """Each candidate within eps of the maximum receives the whole message u.

    Source: derived in docs/conventions.md, "Derivative rules".
    """

    eps: float = 0.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_eps(self.eps)

    def route(self, chunk: ActiveChunk, u: Tensor) -> tuple[Tensor, Tensor]:
        """Send u to each candidate."""
        return u[chunk.owner], u[chunk.owner]
