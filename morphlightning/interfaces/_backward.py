"""Derivative rules and heuristics: what becomes of a message."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from torch import Tensor

from morphlightning.interfaces._component import Component
from morphlightning.interfaces._operators import ActiveChunk, SiteView

Pulled = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Gradients for x (samples, cells) and w (taps,), and touch counts (taps,); None for what was not asked for."""


class DerivativeRule(Component):
    """At a maximum with ties, who receives the message, and how much of it.

    Axioms, checked by ``morphlightning.testing``: positively homogeneous in the message; a lone candidate receives
    exactly the message (this licenses the fast path); nothing leaves the active set; the result does not depend on the
    order of the batch. A rule need not be linear.

    Attributes:
        support: ``"first"`` rules need the winner only, ``"active"`` rules the whole active set.
        scope: ``"row"`` rules look at one maximum at a time; ``"sample"`` rules need all rows of a sample with a tie.
        eps: Candidates whose score lies within eps of the maximum count as tied.
    """

    support: ClassVar[Literal["first", "active"]] = "active"
    scope: ClassVar[Literal["row", "sample"]] = "row"
    eps: float = 0.0

    @abstractmethod
    def route(self, chunk: ActiveChunk, u: Tensor) -> tuple[Tensor, Tensor]:
        """Share out the messages ``u`` (R,): what each pair sends to its cell (N,) and to its tap (N,)."""

    def backward(
        self, view: SiteView, gy: Tensor, *, want_x: bool = True, want_w: bool = True, count: bool = False
    ) -> Pulled:
        """Pull ``gy`` (samples, units) back to x, to w, and to the number of rows that touched each weight.

        Rows without a tie go through the winner alone; only the others are recomputed, a chunk at a time. Override it
        where ``view`` can do the same in fewer passes.
        """
        if self.support == "first":
            return self.to_winners(view, gy, want_x, want_w, count)
        tied = view.gap <= self.eps
        if self.scope == "sample":
            tied = tied.any(1, keepdim=True).expand_as(tied)
        rows = tied & (gy != 0)
        gx, gw, touched = self.to_winners(view, gy.masked_fill(rows, 0), want_x, want_w, count)
        for chunk in view.chunks(rows, self.eps):
            to_cells, to_taps = self.route(chunk, gy[chunk.sample, chunk.unit])
            if gx is not None:
                inside = chunk.cell >= 0
                index = chunk.sample[chunk.owner] * view.cells + chunk.cell
                gx.view(-1).index_add_(0, index[inside], to_cells[inside])
            if gw is not None:
                gw.index_add_(0, chunk.tap, to_taps)
            if touched is not None:
                touched.index_add_(0, chunk.tap, (to_taps != 0).to(touched.dtype))
        return gx, gw, touched

    @staticmethod
    def to_winners(view: SiteView, gy: Tensor, want_x: bool, want_w: bool, count: bool) -> Pulled:
        """The gradient of fixed winners: what every rule does without ties."""
        gx, gw = view.scatter(gy, want_x=want_x, want_w=want_w)
        return gx if want_x else None, gw if want_w else None, view.touches(gy) if count else None


ToWeights = tuple[Tensor, Tensor | None]
"""Gradient of the weights (taps,), and touch counts (taps,) where they are asked for."""


class Heuristic(Component):
    """How a message is passed on, and how a batch of parameter directions becomes one step.

    Attributes:
        stage: ``"message"`` acts inside backward and replaces the message to the previous layer; ``"route"`` acts
            inside backward and changes what reaches the weights; ``"update"`` acts on gradients after they were
            reduced over processes and before clipping and the optimizer's step.
        needs: Statistics that a layer must record for it, summed over micro-batches and processes: ``"count"`` (rows
            that touched each weight), ``"samples"`` (size of the batch), ``"gaps"`` (histogram of the gaps of all rows
            with a message, to be read by :func:`morphlightning.layers.gap_quantile`; since 1.2). And ``"lr"``, the
            optimizer's rate for the weight, which is missing where nobody named the optimizer (since 1.2).
        after: Names of update heuristics that must stand before this one in a composition.
        homogeneous: Whether t times the message gives t times the result. Where it does not (a finite step, which
            takes the message at its word), a model refuses to train with a scaled loss (precision 16-mixed) and
            where the Trainer accumulates other than ``accumulation`` batches, a field of the heuristic (1 where it
            has none): both scale messages. Since 1.2.
    """

    stage: ClassVar[Literal["message", "route", "update"]]
    needs: ClassVar[frozenset[str]] = frozenset()
    after: ClassVar[frozenset[str]] = frozenset()
    homogeneous: ClassVar[bool] = True

    def message(self, view: SiteView, gy: Tensor, default: Tensor) -> Tensor:
        """Message to the inputs (samples, cells) in place of the derivative rule's ``default``."""
        raise TypeError(f"{type(self).__name__} declares stage 'message' but does not define message()")

    def route(self, view: SiteView, gy: Tensor, count: bool, default: Callable[[Tensor], ToWeights]) -> ToWeights:
        """What messages ``gy`` (samples, units) send to the weights in place of ``default(gy)``, the rule's way."""
        raise TypeError(f"{type(self).__name__} declares stage 'route' but does not define route()")

    def update(self, weight: Tensor, grad: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Gradient handed to the optimizer in place of ``grad``, of the weight's shape, as ``count`` is."""
        raise TypeError(f"{type(self).__name__} declares stage 'update' but does not define update()")
