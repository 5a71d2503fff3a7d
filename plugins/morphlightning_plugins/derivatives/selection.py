"""Rules that treat all messages alike, whatever their sign."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from morphlightning.interfaces import ActiveChunk, ActiveGraph, DerivativeRule, Pulled, SiteView


def check_eps(eps: float) -> None:
    """Raise ValueError unless eps is a non-negative number."""
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}; it is the slack within which a candidate counts as tied")


class _Alike(DerivativeRule):
    """Rules that send the same to all candidates of a row: sums over the active graph."""

    @abstractmethod
    def share(self, graph: ActiveGraph, gy: Tensor) -> Tensor:
        """What each candidate of a row receives, for messages ``gy`` (samples, units)."""

    def backward(
        self, view: SiteView, gy: Tensor, *, want_x: bool = True, want_w: bool = True, count: bool = False
    ) -> Pulled:
        """Shares to all candidates, and how often each weight received one."""
        graph = view.active(self.eps)
        if not graph.tied:
            return self.to_winners(view, gy, want_x, want_w, count)
        share = self.share(graph, gy)
        return (
            graph.to_cells(share) if want_x else None,
            graph.to_taps(share) if want_w else None,
            graph.to_taps((share != 0).to(share.dtype)) if count else None,
        )


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
class Uniform(_Alike):
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

    def share(self, graph: ActiveGraph, gy: Tensor) -> Tensor:
        """Divide each message by the number of candidates."""
        return gy / graph.size.clamp_min(1)


@dataclass(frozen=True)
class All(_Alike):
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

    def share(self, graph: ActiveGraph, gy: Tensor) -> Tensor:
        """The message itself."""
        return gy
