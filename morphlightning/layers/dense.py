"""Dense layers: every output sees every input of the last axis."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from morphlightning.functional.checks import check_dense
from morphlightning.functional.dense import max_plus, min_plus
from morphlightning.layers.base import MorphLayer
from morphlightning.ops.statistics import Ghosts


class DenseLayer(MorphLayer):
    """A layer with weights (out_features, in_features); options as for :class:`MorphLayer`."""

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__((out_features, in_features), **options)
        self.in_features, self.out_features = in_features, out_features

    def start(self, x: Tensor) -> tuple[Tensor, Ghosts]:
        """Check x; the effective weight and the ghost leaves of this pass."""
        check_dense(type(self).__name__, x, self.weight, 1)
        return self.begin(math.prod(x.shape[:-1]))


class Dilation(DenseLayer):
    r"""Dense dilation :math:`y_i = \max_j x_j + w_{ij}`: (..., in_features) to (..., out_features).

    Args:
        in_features: Size of the last axis of x.
        out_features: Number of units.
        **options: derivative, heuristic, initializer, mask, generator; see :class:`MorphLayer`.

    Source: the max-plus perceptron (Davidson and Ritter); conventions in docs/conventions.md, "The table".
    """

    op: ClassVar[str] = "dilation"

    def forward(self, x: Tensor) -> Tensor:
        """Dilate the last axis."""
        weight, ghosts = self.start(x)
        return max_plus(x, weight, self.pipeline.policy, ghosts)


class Erosion(DenseLayer):
    r"""Dense erosion :math:`y_i = \min_j x_j - w_{ij}`: (..., in_features) to (..., out_features).

    Arguments as for :class:`Dilation`.
    """

    op: ClassVar[str] = "erosion"

    def forward(self, x: Tensor) -> Tensor:
        """Erode the last axis."""
        weight, ghosts = self.start(x)
        return min_plus(x, weight, self.pipeline.policy, ghosts)


class Opening(DenseLayer):
    """Dense opening with one weight for both stages: (..., in_features) to itself, by way of ``out_features`` units.

    Anti-extensive and idempotent. An input that no weight reaches gives -inf. Arguments as for :class:`Dilation`.
    """

    op: ClassVar[str] = "opening"

    def forward(self, x: Tensor) -> Tensor:
        """Erosion, then its adjoint dilation."""
        weight, ghosts = self.start(x)
        policy = self.pipeline.policy
        eroded = min_plus(x, weight, policy, ghosts)
        return max_plus(eroded, weight.t(), policy, ghosts.arranged(torch.t))


class Closing(DenseLayer):
    """Dense closing with one weight for both stages; extensive and idempotent. As :class:`Opening`."""

    op: ClassVar[str] = "closing"

    def forward(self, x: Tensor) -> Tensor:
        """Dilation, then its adjoint erosion."""
        weight, ghosts = self.start(x)
        policy = self.pipeline.policy
        dilated = max_plus(x, weight, policy, ghosts)
        return min_plus(dilated, weight.t(), policy, ghosts.arranged(torch.t))


class SupOfErosions(nn.Module):
    r"""Supremum of erosions :math:`y_i = \max_m \min_j x_j - w_{imj}`: (..., in_features) to (..., out_features).

    By Matheron's theorem every increasing, translation-invariant operator has this form with enough terms.

    Args:
        in_features: Size of the last axis of x.
        out_features: Number of outputs.
        terms: Erosions of each output.
        **options: As for :class:`MorphLayer`.
    """

    def __init__(self, in_features: int, out_features: int, terms: int = 4, **options: Any) -> None:
        super().__init__()
        self.terms = terms
        self.erosion = Erosion(in_features, out_features * terms, **options)

    def forward(self, x: Tensor) -> Tensor:
        """The largest of the erosions of each output; the first of equal ones."""
        y: Tensor = self.erosion(x).unflatten(-1, (-1, self.terms)).max(-1).values
        return y


class DilationErosion(nn.Module):
    """Dilations and erosions side by side: (..., in_features) to (..., 2 out_features), dilations first.

    Args:
        in_features: Size of the last axis of x.
        out_features: Number of dilations, and of erosions.
        **options: As for :class:`MorphLayer`, for both.

    Source: the dilation-erosion block of Mondal et al., arXiv 1901.00109.
    """

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__()
        self.dilation = Dilation(in_features, out_features, **options)
        self.erosion = Erosion(in_features, out_features, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Both, concatenated."""
        return torch.cat([self.dilation(x), self.erosion(x)], -1)


class DilationErosionPerceptron(nn.Module):
    r"""Convex mix :math:`\lambda_i \max_j (x_j + a_{ij}) + (1 - \lambda_i) \min_j (x_j - b_{ij})`.

    (..., in_features) to (..., out_features). One lambda a unit, in (0, 1): the sigmoid of the parameter ``logit``,
    1/2 at the start.

    Args:
        in_features: Size of the last axis of x.
        out_features: Number of units.
        **options: As for :class:`MorphLayer`, for both operators.

    Source: the dilation-erosion perceptron (Araujo; Valle, arXiv 2003.02306), with the sign of b as in our erosions.
    """

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__()
        self.dilation = Dilation(in_features, out_features, **options)
        self.erosion = Erosion(in_features, out_features, **options)
        self.logit = nn.Parameter(torch.zeros(out_features))

    @property
    def mix(self) -> Tensor:
        """Lambda, shape (out_features,)."""
        return self.logit.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Mix both."""
        mix = self.mix.to(x.dtype)
        y: Tensor = mix * self.dilation(x) + (1 - mix) * self.erosion(x)
        return y


class MinMaxPlus(nn.Module):
    """Linear, then max-plus, then min-plus: (..., in_features) to (..., out_features).

    Args:
        in_features: Size of the last axis of x.
        hidden_features: Width between the three layers.
        out_features: Number of outputs.
        **options: As for :class:`MorphLayer`, for both morphological layers.

    Source: the block of Min-Max-Plus networks, arXiv 2102.06358.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int, **options: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, hidden_features)
        self.dilation = Dilation(hidden_features, hidden_features, **options)
        self.erosion = Erosion(hidden_features, out_features, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three layers."""
        y: Tensor = self.erosion(self.dilation(self.linear(x)))
        return y
