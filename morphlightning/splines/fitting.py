"""Splines fitted to functions and samples."""

from __future__ import annotations

import torch
from torch import Tensor

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
