"""Signed layers: maxima and minima of inputs and of negated inputs, each with a weight."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from morphlightning.errors import ShapeError
from morphlightning.layers.base import MorphLayer
from morphlightning.layers.dense import Dilation, Erosion
from morphlightning.layers.soft import SoftDilation, SoftErosion


class _Signed(MorphLayer):
    """What layers whose weight [a | b] meets [x | -x] share; to stand before the layer that meets both."""

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__(2 * in_features, out_features, **options)  # type: ignore[arg-type]  # that of the layer
        self.in_features = in_features

    @property
    def a(self) -> Tensor:
        """The weights that meet x, (out_features, in_features); -inf where missing."""
        return self.effective_weight[:, : self.in_features]

    @property
    def b(self) -> Tensor:
        """The weights that meet -x, (out_features, in_features); -inf where missing."""
        return self.effective_weight[:, self.in_features :]

    def candidates(self, x: Tensor) -> Tensor:
        """As the base, of both signs."""
        return super().candidates(self.both(x))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to the last axis and its negative."""
        y: Tensor = super().forward(self.both(x))
        return y

    def both(self, x: Tensor) -> Tensor:
        """Inputs and negated inputs side by side, (..., 2 in_features)."""
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ShapeError(
                f"{type(self).__name__}: x has shape {tuple(x.shape)}, its last axis must be in_features = "
                f"{self.in_features}"
            )
        return torch.cat([x, -x], -1)


class SignedDilation(_Signed, Dilation):
    r"""Signed dilation :math:`y_i = \max_j \max(x_j + a_{ij},\, -x_j + b_{ij})`.

    (..., in_features) to (..., out_features). A dilation of the inputs and their negatives side by side, with the
    weight (out_features, 2 in_features) = [a | b], so rules at ties, heuristics, initializers and masks mean what they
    mean for :class:`Dilation`. It is convex, and 1-Lipschitz in the sup norm. With a = -b it is the sup-norm distance
    :math:`\max_j |x_j - b_{ij}|` from b.

    Args:
        in_features: Size of the last axis of x.
        out_features: Number of units.
        **options: derivative, heuristic, initializer, mask, generator; see :class:`MorphLayer`.

    Source: the distance neuron is that of Zhang et al., "Towards certifying l-infinity robustness using neural networks
    with l-inf-dist neurons", arXiv 2102.05363; that it is a case of a signed dilation is derived in docs/guarantees.md.
    """


class SignedErosion(_Signed, Erosion):
    r"""Signed erosion :math:`y_i = \min_j \min(x_j - a_{ij},\, -x_j - b_{ij})`, the dual of :class:`SignedDilation`.

    Minus it is the signed dilation with a and b exchanged. Arguments as for that.

    Source: derived in docs/guarantees.md.
    """


class SoftSignedDilation(_Signed, SoftDilation):
    r"""Signed dilation by log-sum-exp, :math:`\frac1\beta\log\sum_j (e^{\beta(x_j+a_{ij})} + e^{\beta(b_{ij}-x_j)})`.

    1-Lipschitz in the sup norm at every inverse temperature: its derivatives by x and -x are a softmax, so the moduli
    of those by x add to at most 1.

    Args:
        in_features: Size of the last axis of x.
        out_features: Number of units.
        beta: Inverse temperature, > 0; inf for the maximum itself.
        precision: As for :class:`SoftDilation`.
        **options: As for :class:`SoftDilation`.

    Source: derived in docs/guarantees.md.
    """

    hard: ClassVar[type[MorphLayer]] = SignedDilation


class SoftSignedErosion(_Signed, SoftErosion):
    """Signed erosion by log-sum-exp, the dual of :class:`SoftSignedDilation`; arguments as for that."""

    hard: ClassVar[type[MorphLayer]] = SignedErosion
