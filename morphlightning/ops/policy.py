"""What the backward pass of an operator does: a derivative rule, and the heuristics that act inside backward.

A custom operator takes tensors and plain values only, so a policy travels as a string; the string says the same in
every process, which keeps compiled graphs valid when they are cached on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from morphlightning.interfaces import DerivativeRule, Heuristic, Pulled, ToWeights
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

    def backward(self, view: OperatorView, gy: Tensor, want_x: bool, want_w: bool, count: bool) -> Pulled:
        """Gradients for x (samples, cells) and w (taps,), and touch counts (taps,), where they are wanted."""
        if not self.routes:
            gx, gw, touched = self.rule.backward(view, gy, want_x=want_x, want_w=want_w, count=count)
        else:
            gx, _, _ = self.rule.backward(view, gy, want_w=False) if want_x else (None, None, None)
            gw, touched = self._to_weights(view, gy, count) if want_w or count else (None, None)
        if gx is not None and self.message is not None:
            gx = self.message.message(view, gy, gx)
        return gx, gw, touched

    def _to_weights(self, view: OperatorView, gy: Tensor, count: bool) -> ToWeights:
        """The route heuristics around the rule; the last one written is the outermost."""

        def rule(messages: Tensor) -> ToWeights:
            _, gw, touched = self.rule.backward(view, messages, want_x=False, count=count)
            assert gw is not None
            return gw, touched

        send: Callable[[Tensor], ToWeights] = rule
        for heuristic in self.routes:
            send = partial(_routed, heuristic, view, count, send)
        return send(gy)


def _routed(
    heuristic: Heuristic, view: OperatorView, count: bool, default: Callable[[Tensor], ToWeights], gy: Tensor
) -> ToWeights:
    return heuristic.route(view, gy, count, default)


def parse(key: str) -> Policy:
    """The policy that was written as ``key``."""
    return _known[key]
