"""Bijections that treat each number of a point on its own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphlightning.errors import ConfigError, NotSupportedError
from morphlightning.flows.base import Bijection, Reduce
from morphlightning.splines import NonuniformSpline, SplineModule


class Normalization(Bijection):
    r""":math:`z_d = (x_d - m_d)\,e^{s_d}` with m and s to learn; the identity until it is initialized.

    :meth:`initialize` gives each :math:`z_d` mean 0 and variance 1 over the points that it sees, once: what was
    initialized, trained or loaded before stays.

    Source: the activation normalization of Kingma and Dhariwal, arXiv 1807.03039.
    """

    initialized: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.mean = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image z (N, dim), and log |det dz/dx| (N,)."""
        self.check(x)
        return (x - self.mean) * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        """The point x (N, dim) whose image is z."""
        self.check(z)
        return z / self.log_scale.exp() + self.mean

    @property
    def awaits_data(self) -> bool:
        """Whether it still is the identity that it began as."""
        return not self.initialized

    @torch.no_grad()
    def initialize(self, x: Tensor, reduce: Reduce = lambda mean: mean) -> None:
        """Normalize x (N, dim), unless initialized; in float64, so that processes together do as one would."""
        self.check(x)
        if not self.awaits_data:
            return
        mean = reduce(x.double().mean(0))
        variance = reduce((x.double() - mean).square().mean(0))
        self.mean.copy_(mean)
        self.log_scale.copy_(-0.5 * variance.clamp_min(1e-12).log())
        self.initialized.fill_(True)


class ElementwiseSpline(Bijection):
    r"""Each number passes through an increasing linear spline, the same for all points; :math:`z_d = f_d(x_d)`.

    The inverse is the spline with knots and values exchanged.

    Args:
        dim: Numbers of a point.
        spline: One spline for each number (``channels=dim``) or one for all, with a slope constraint whose ``min`` is
            positive; None for ``NonuniformSpline`` that starts as the identity, with slopes in [0.05, 20].

    Raises:
        NotSupportedError: The spline may have slopes that are not positive, so that it has no inverse.
        ConfigError: It is made for other points.
    """

    def __init__(self, dim: int, spline: SplineModule | None = None) -> None:
        super().__init__(dim)
        if spline is None:
            spline = NonuniformSpline(dim, init="identity", constraint={"min": 0.05, "max": 20.0}, learn_knots=True)
        constraint = spline.constraint
        if constraint is None or not constraint.min > 0 or spline.extrapolation == "constant":
            raise NotSupportedError(
                f"ElementwiseSpline: {spline} may have slopes that are not positive, so that it has no inverse; give "
                'it a constraint with a positive min, such as {"min": 0.05, "max": 20.0}, and linear extrapolation'
            )
        if spline.channels not in (None, dim) or spline.channel_dim not in (1, -1):
            raise ConfigError(
                f"ElementwiseSpline: the spline is for channels={spline.channels} on axis {spline.channel_dim}, "
                f"expected channels=None or {dim} on axis 1"
            )
        self.spline = spline

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image z (N, dim), and log |det dz/dx| (N,)."""
        self.check(x)
        table = self.spline.table()
        return table(x), table.slope(x).log().sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """The point x (N, dim) whose image is z."""
        self.check(z)
        return self.spline.inverse()(z)


class Logit(Bijection):
    r""":math:`z_d = \log(y_d/(1 - y_d))` with :math:`y = m + (1 - 2m)x`: from the unit cube to all of space.

    Args:
        dim: Numbers of a point, each in [0, 1].
        margin: m, which keeps z finite at 0 and 1.

    Raises:
        ConfigError: ``margin`` is not in (0, 0.5).

    Source: Papamakarios et al., arXiv 1705.07057, section 5.
    """

    def __init__(self, dim: int, margin: float = 0.05) -> None:
        super().__init__(dim)
        if not 0 < margin < 0.5:
            raise ConfigError(f"Logit: margin={margin}, expected a number in (0, 0.5)")
        self.margin = margin

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image z (N, dim), and log |det dz/dx| (N,)."""
        self.check(x)
        z = torch.logit(self.margin + (1 - 2 * self.margin) * x)
        slopes = math.log(1 - 2 * self.margin) - F.logsigmoid(z) - F.logsigmoid(-z)
        return z, slopes.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """The point x (N, dim) whose image is z; a little outside the unit cube for large z."""
        self.check(z)
        return (torch.sigmoid(z) - self.margin) / (1 - 2 * self.margin)
