"""Subnetworks with an upper bound of their polar: exact for linear factors and two taps, loose for the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from morphlightning.functional import dilation
from morphlightning.guarantees.optimality.homogeneity import Parameters
from morphlightning.guarantees.optimality.polar import PolarBound, Shards
from morphlightning.guarantees.optimality.subnetworks import Gain, HomogeneousNetwork
from morphlightning.guarantees.optimality.two_taps import two_tap_polar
from morphlightning.layers import Dilation

SLACK = 1 + 1e-10
"""Upper bounds are enlarged by it, for the rounding of float64 sums and singular values."""


class Factor(HomogeneousNetwork):
    r"""A linear factor phi(x; u, v) = (u^T x) v, of degree 2; sums of it are factorizations of a matrix.

    With half the sum of squares as penalty, a sum of r factors with the square loss is the least squares problem with
    the nuclear norm, if r is large enough. The polar is exact: the largest singular value of X^T z.

    Args:
        in_features: Size of x.
        out_features: Size of v.

    Source: Haeffele and Vidal, arXiv 1506.07540; the polar is derived in docs/guarantees.md.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        factors = nn.Linear(in_features, 1, bias=False), nn.Linear(1, out_features, bias=False)
        super().__init__(nn.Sequential(*factors), (in_features,), degree=2)

    def phi(self, x: Tensor, stacked: Parameters) -> Tensor:
        """As the base, as products of matrices."""
        return x @ stacked["0/weight"].mT @ stacked["1/weight"].mT

    def polar_bound(self, x: Tensor, z: Tensor, shards: Shards) -> PolarBound:
        """The largest singular value of X^T z, and its singular vectors."""
        left, values, right = torch.linalg.svd(shards.sum(x.mT @ z), full_matrices=False)
        direction = {"0/weight": left[:, :1].mT, "1/weight": right[:1].mT}
        return PolarBound(values[0].item() * SLACK, direction)


class Neuron(HomogeneousNetwork):
    r"""A ReLU neuron with its weights to the outputs, phi(x; w, b, v) = relu(w^T x + b) v, of degree 2.

    With rows :math:`\tilde x_n = (x_n, 1)` the polar is at most the smaller of :math:`\|\tilde X\|\,\|z\|` (spectral
    norms) and

    .. math:: \tfrac12 \|\tilde X^T z\| + \tfrac12 \sqrt{\textstyle\sum_n |z_n|\;
              \|\sum_n |z_n| \tilde x_n \tilde x_n^T\|}.

    Neither is attained in general: gaps are certified, but larger than they are.

    Args:
        in_features: Size of x.
        out_features: Size of v.

    Source: derived in docs/guarantees.md, from relu(t) = (t + |t|) / 2 and the inequality of Cauchy and Schwarz.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        layers = nn.Linear(in_features, 1), nn.ReLU(), nn.Linear(1, out_features, bias=False)
        super().__init__(nn.Sequential(*layers), (in_features,), degree=2)

    def phi(self, x: Tensor, stacked: Parameters) -> Tensor:
        """As the base, as products of matrices."""
        hidden = (x @ stacked["0/weight"].mT + stacked["0/bias"][:, None]).relu()
        return hidden @ stacked["2/weight"].mT

    def polar_bound(self, x: Tensor, z: Tensor, shards: Shards) -> PolarBound:
        """The smaller bound."""
        rows = torch.cat([x, x.new_ones(len(x), 1)], 1)
        sizes = torch.linalg.vector_norm(z, dim=1)
        odd = torch.linalg.matrix_norm(shards.sum(rows.mT @ z), 2)
        even = torch.linalg.eigvalsh(shards.sum((rows * sizes[:, None]).mT @ rows))[-1]
        split = 0.5 * odd + 0.5 * (shards.sum(sizes.sum()) * even).clamp_min(0).sqrt()
        spectral = [torch.linalg.eigvalsh(shards.sum(m.mT @ m))[-1].clamp_min(0).sqrt() for m in (rows, z)]
        return PolarBound(torch.minimum(split, spectral[0] * spectral[1]).item() * SLACK)


class GainDilation(HomogeneousNetwork):
    r"""A dilation in gain form with its weights to the outputs, phi(x; s, w, c) = max_j(|s| x_j + w_j) c, of degree 2.

    With two inputs and one output the polar is exact, see :func:`two_tap_polar`; with the second input 0 that is a
    max-plus function of one variable. Otherwise, for an anchor a, :math:`\alpha = |\sum_n z_n|` and
    :math:`\beta = \sum_n |z_n| \|x_n - a\|_\infty`, it is at most

    .. math:: \sqrt{(\alpha \|a\|_\infty + \beta)^2 + \alpha^2},

    because dilations are non-expansive. That is loose: it knows nothing of the inputs but their distances to a, which
    is halfway between the least and the greatest value of each input.

    Args:
        in_features: Number of taps.
        out_features: Size of c.

    Source: derived in docs/guarantees.md.
    """

    def __init__(self, in_features: int, out_features: int = 1) -> None:
        layers = Gain(Dilation(in_features, 1)), nn.Linear(1, out_features, bias=False)
        super().__init__(nn.Sequential(*layers), (in_features,), degree=2)
        self.exact = in_features == 2 and out_features == 1

    def phi(self, x: Tensor, stacked: Parameters) -> Tensor:
        """As the base, as one dilation with a weight matrix for each slice."""
        inputs = stacked["0/gain"].abs()[:, None, None] * x
        return dilation(inputs, stacked["0/network/weight"]) @ stacked["1/weight"].mT

    def polar_bound(self, x: Tensor, z: Tensor, shards: Shards) -> PolarBound:
        """The polar of two taps, or the bound."""
        x = shards.whole(x)
        if self.exact:
            value, (gain, *taps), sign = two_tap_polar(x, shards.whole(z)[:, 0])
            direction = {
                "0/gain": x.new_tensor(gain),
                "0/network/weight": x.new_tensor([taps]),
                "1/weight": x.new_tensor([[sign]]),
            }
            return PolarBound(value * SLACK, direction)
        z = shards.whole(z)
        anchor = (x.amin(0) + x.amax(0)) / 2
        away = ((x - anchor).abs().amax(1) * torch.linalg.vector_norm(z, dim=1)).sum().item()
        total = torch.linalg.vector_norm(z.sum(0)).item()
        return PolarBound(math.hypot(total * anchor.abs().max().item() + away, total) * SLACK)
