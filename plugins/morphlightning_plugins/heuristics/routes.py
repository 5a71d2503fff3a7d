"""Heuristics that change what reaches the weights, sample by sample, inside the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from morphlightning.interfaces import Heuristic, SiteView, ToWeights
from morphlightning_plugins.heuristics.messages import FiniteStep
from morphlightning_plugins.heuristics.updates import Stage


@dataclass(frozen=True)
class Projection(FiniteStep):
    """Metric projection of each row's weights on {max_j (x_j + w_ij) = y_i - tau u_i}, as a pseudo-gradient.

    To lower a maximum, every weight above the target t is lowered to t - x_j; to raise it, the winner's is raised. For
    one sample this is the nearest such weight in every l_p norm, for any size of step, whatever is tied. Sent is
    (w - w') / tau, so that SGD with lr = tau takes the step of the mean projection; with ``count_normalized`` the mean
    is over the samples that move a weight. Windows, whose weights all positions share, get the sum over positions.

    Source: derived in docs/bouligand.md, "Projection".
    """

    stage: ClassVar[Stage] = "route"

    def route(self, view: SiteView, gy: Tensor, count: bool, default: Callable[[Tensor], ToWeights]) -> ToWeights:
        """Pseudo-gradients of the projections, in the scale of the messages."""
        scale = self.per_sample(view)
        moved, touched = view.projection(gy, self.tau * scale, count=count)
        return moved, touched if count else None


@dataclass(frozen=True)
class LowerOnly(Heuristic):
    """Weights are only ever lowered: rows that want a larger maximum send nothing to them.

    From a start above the greatest solution w*_ij = min_b (t_i^b - x_j^b) of dilation(x^b) <= t^b every weight falls
    towards it, and none dies by being raised past the others. In an erosion, min_j (x_j - w_ij), lower weights make a
    larger minimum.

    Source: derived in docs/bouligand.md, "Projection".
    """

    stage: ClassVar[Stage] = "route"

    def route(self, view: SiteView, gy: Tensor, count: bool, default: Callable[[Tensor], ToWeights]) -> ToWeights:
        """What the messages above 0 send."""
        return default(gy.clamp_min(0))
