"""Splines fitted to functions and samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from morphlightning.errors import ConfigError
from morphlightning.splines.table import SplineTable

STRAIGHTNESS = 1e-9
"""Weight of squared second differences beside the mean squared error: it settles what no sample does."""


def least_squares(x: Tensor, y: Tensor, knots: Tensor) -> Tensor:
    r"""Values at the knots for which the splines are closest to samples, in the mean square.

    Args:
        x: Arguments, (splines, n).
        y: Values there, (splines, n).
        knots: (splines, K), float64.

    Returns:
        (splines, K), float64: the solution of :math:`(B^TB/n + \varepsilon D^TD) c = B^Ty/n`, with the hat functions B
        at the samples, second differences D and :math:`\varepsilon` = 1e-9.
    """
    count = knots.shape[1]
    index = (torch.searchsorted(knots.contiguous(), x.contiguous(), right=True) - 1).clamp(0, count - 2)
    left, right = knots.gather(1, index), knots.gather(1, index + 1)
    rising = (x - left) / (right - left)
    hats = torch.zeros(*x.shape, count, dtype=knots.dtype, device=knots.device)
    hats.scatter_(2, index[..., None], 1 - rising[..., None]).scatter_(2, index[..., None] + 1, rising[..., None])
    second = torch.eye(count, dtype=knots.dtype, device=knots.device).diff(n=2, dim=0)
    normal = hats.mT @ hats / x.shape[1] + STRAIGHTNESS * (second.mT @ second)
    solution: Tensor = torch.linalg.lstsq(normal, hats.mT @ y[..., None] / x.shape[1]).solution
    return solution[..., 0]


class Fit(NamedTuple):
    """A spline, and how far it is from the function that it was fitted to.

    Attributes:
        table: The spline.
        error: The largest distance between the ends of its knots, over ``samples`` points of each piece.
        at: Where it is that far.
    """

    table: SplineTable
    error: float
    at: float


def fit(function: Callable[[Tensor], Tensor], knots: Tensor, *, tolerance: float = 0.0, samples: int = 32) -> Fit:
    """Interpolate a function at knots, in float64, or at the fewest of them.

    Args:
        function: A pointwise function of a tensor.
        knots: Increasing knots (K,).
        tolerance: The interpolation at all knots is then pruned by so much, see :meth:`SplineTable.prune`.
        samples: Points in each piece at which the error is measured.

    Raises:
        ConfigError: Knots do not increase, the function is not finite at one, or tolerance is negative.
    """
    knots = knots.detach().double()
    values = function(knots)
    if not bool(values.isfinite().all()):
        raise ConfigError(f"fit: the function is not finite at {knots[~values.isfinite()][0].item():.6g}")
    table = SplineTable(knots, values)
    inner = torch.arange(samples, dtype=torch.float64) / samples
    points = torch.cat([(knots[:-1, None] + inner * knots.diff()[:, None]).flatten(), knots[-1:]])
    table = table.prune(tolerance) if tolerance else table
    distance = (table(points) - function(points)).abs()
    worst = int(distance.argmax())
    return Fit(table, float(distance[worst]), float(points[worst]))
