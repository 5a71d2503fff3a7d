"""What the backward pass of an operator does: a derivative rule, and the heuristics that act inside backward.

A custom operator takes tensors and plain values only, so a policy travels as a string; the string says the same in
every process, which keeps compiled graphs valid when they are cached on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from morphlightning.interfaces import ActiveChunk, DerivativeRule, Heuristic
from morphlightning.ops.view import OperatorView

_known: dict[str, Policy] = {}


@dataclass(frozen=True)
class Policy:
    """A derivative rule, at most one message heuristic and a chain of route heuristics."""

    rule: DerivativeRule
    message: Heuristic | None = None
    routes: tuple[Heuristic, ...] = ()
    key: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Write the policy as a string, which :func:`parse` knows from now on."""
        parts = (self.rule, *((self.message,) if self.message else ()), *self.routes)
        object.__setattr__(self, "key", "+".join(f"{type(part).__module__}:{part!r}" for part in parts))
        _known[self.key] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what makes the policy, so that the process that loads it knows it too."""
        return Policy, (self.rule, self.message, self.routes)

    @property
    def winner_only(self) -> bool:
        """Whether the backward pass needs the winners alone."""
        return self.rule.support == "first" and self.message is None and not self.routes

    def backward(self, view: OperatorView, gy: Tensor, count: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients for x (samples, cells) and w (taps,), and touch counts (taps,)."""
        gx, gw, touched = self.rule.backward(view, gy, count, self._route if self.routes else None)
        if self.message is not None:
            gx = self.message.message(view, gy, gx)
        return gx, gw, touched

    def _route(self, chunk: ActiveChunk, u: Tensor, to_taps: Tensor) -> Tensor:
        for heuristic in self.routes:
            to_taps = heuristic.route(chunk, u, to_taps)
        return to_taps


def parse(key: str) -> Policy:
    """The policy that was written as ``key``."""
    return _known[key]
